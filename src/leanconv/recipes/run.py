"""From a recipe to a run folder: build, rewrite, make elastic, train, calibrate, measure, save."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from leanconv.data.contract import attach, contract_of
from leanconv.errors import LeanconvError
from leanconv.files import held
from leanconv.ranks import rank_and_world
from leanconv.recipes.config import complete, to_data
from leanconv.recipes.detection import run_detection
from leanconv.recipes.elastic import elastic_options, made_elastic, measured_table, mutual_objective
from leanconv.recipes.finetuning import check_classes, knows_others, load_teacher, take_weights
from leanconv.recipes.images import score_image_run
from leanconv.recipes.named_code import named_code
from leanconv.recipes.settings import Recipe
from leanconv.recipes.trained_by import choose_kernels, training_form
from leanconv.recipes.videos import score_run
from leanconv.story import is_own_code
from leanconv.train import Classify, ClassifyWithTower, Evaluation, FitResult, VideoEvaluation, fit, is_main_process
from leanconv.train.check import outputs_of
from leanconv.train.runfolder import saved_model
from leanconv.trust import CodeNotTrusted, require_trust

if TYPE_CHECKING:
    from leanconv.data import ImageData, InputContract, VideoData
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable
    from leanconv.train.detected import Detected

__all__ = ["RunResult", "build_model", "open_data", "run_recipe"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left: the trained network (also in `model_folder`), its figures and, if elastic, its query table.

    `images` is the test of the last weights on images, an elastic network at its largest; `videos` that on whole
    videos, for a recipe that trains on clips of them, `detected` that of a detector. In a distributed run all processes
    measure the table together, and the first one alone saves and tests.
    """

    recipe: Recipe
    fit: FitResult
    net: nn.Module
    model_folder: Path
    table: QueryTable | None = None
    images: Evaluation | None = None
    videos: VideoEvaluation | None = None
    detected: Detected | None = None


def open_data(
    recipe: Recipe,
    contract: InputContract | None = None,
    part: str | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageData | VideoData:
    """The images or videos of the recipe, prepared and numbered by `contract` where a trained network has one.

    With `part` that part of them is the test, with `class_names` they are numbered so, see `open_images`.
    """
    settings = recipe.data
    video = settings.video
    if video is not None:
        from leanconv.data import open_videos

        return open_videos(
            settings.spec,
            frames=video.frames,
            rate=video.rate,
            resolution=settings.resolution,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=recipe.seed,
            augment=settings.augment,
            short_side=video.short_side,
            fps=video.fps,
            clips_per_video=video.clips_per_video,
            mean=video.mean,
            std=video.std,
            contract=contract,
            class_names=class_names,
            part=part,
            validation=settings.held_out,
        )
    from leanconv.data import VIDEO_KINDS, open_images

    if settings.spec.partition(":")[0] in VIDEO_KINDS:
        raise LeanconvError(
            f"data.spec={settings.spec} names videos, and this recipe is for images: say how clips are taken from them,"
            " for example data.video.frames=8 (with a network for clips), or name images"
        )
    return open_images(
        settings.spec,
        resolution=settings.resolution,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=recipe.seed,
        augment=settings.augment,
        exif=settings.exif,
        mean=settings.mean,
        std=settings.std,
        contract=contract,
        class_names=class_names,
        part=part,
        validation=settings.held_out,
    )


def build_model(
    recipe: Recipe, num_classes: int, class_names: Sequence[str] | None = None, *, trust_code: bool = False
) -> nn.Module:
    """The network of the recipe, rewritten and made elastic; its weights are drawn from the recipe's seed.

    A trained one must know the classes called `class_names`, unless the recipe gives it a new classifier.
    Code of others that the recipe or its saved model names is run with `trust_code` alone, else `CodeNotTrusted`.
    """
    import torch

    from leanconv.rewrites import parse_step, rewrite

    size = recipe.data.input_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _start(recipe, num_classes, size, class_names, trust_code)
        if recipe.rewrites:
            steps = [parse_step(text) for text in recipe.rewrites]
            model = rewrite(model, *steps, size=size).model
        return model if recipe.elastic is None else made_elastic(recipe.model, model, recipe.elastic, size)


def _start(
    recipe: Recipe, num_classes: int, size: tuple[int, ...], class_names: Sequence[str] | None, trust_code: bool
) -> nn.Module:
    """The network before rewrites: built by name, or loaded with its weights from a saved folder."""
    from leanconv.build import create_model, is_folder, resolve, with_new_classifier

    folder = saved_model(recipe.model)
    if is_folder(str(folder)):
        model = resolve(str(folder), recipe.model_args, trust_code=trust_code)
        outputs = outputs_of(model, size)
        if outputs == num_classes:
            if not (recipe.new_classifier and knows_others(model, class_names)):
                check_classes(recipe, model, class_names)
                return model.train()
        elif not recipe.new_classifier:
            raise LeanconvError(
                f"{recipe.model} has {outputs} outputs, but the data has {num_classes} classes: name the data that it"
                " was trained on, or let it begin with a fresh classifier: --new-classifier (new_classifier=true)"
            )
        model, _ = with_new_classifier(folder, num_classes, trust_code=trust_code)
        return model.train()
    if is_own_code(recipe.model) and not trust_code:
        raise CodeNotTrusted(f"model={recipe.model} is no code of leanconv's: run_recipe(..., trust_code=True)")
    _check_axes(recipe, size)
    options = {"num_classes": num_classes, **recipe.model_args}
    if options["num_classes"] is None:
        del options["num_classes"]
    elif options["num_classes"] < num_classes:
        raise LeanconvError(
            f"model_args.num_classes is {options['num_classes']}, but the data has {num_classes} classes: leave it out"
        )
    return create_model(recipe.model, **{**elastic_options(recipe), **options})


def _check_axes(recipe: Recipe, size: tuple[int, ...]) -> None:
    """Raise for an image network on clips and the other way round, where nothing is rewritten."""
    from leanconv.build import default_size

    try:
        made_for = default_size(recipe.model)
    except LeanconvError:  # it has none, or there is no such network, which is reported when it is created
        return
    if len(made_for) != len(size) and not recipe.rewrites:
        clips = len(size) == 4
        raise LeanconvError(
            f"{recipe.model} was made for inputs {list(made_for)}, and the data are {list(size)}: choose a network for"
            f" {'clips, or set data.video=null' if clips else 'images, or say how clips are taken (data.video.frames)'}"
        )


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    latency: bool = True,
    trust_code: bool = False,
) -> RunResult:
    """Carry out `recipe` in the run folder `out`: what `fit` writes, then `model/` and, if elastic, the table.

    The table is `table.json` and `table.csv`; `latency` says whether it has milliseconds as well. Networks for video
    are tested on whole videos: `videos.json`, `predictions.csv` and the contact sheet `contact_sheet.png`; those for
    images leave `evaluation.json` and `predictions.csv`.

    Where the recipe names code of others (as its model, or in the story of a model, teacher or weights) it is run with
    `trust_code`, or where this user began the very same run with it and it is resumed, see `leanconv.trust`; else
    `CodeNotTrusted` is raised before anything is opened. Raises as `open_images`, `open_videos`, `create_model`,
    `rewrite`, `take_weights` and `fit`.
    """
    out = Path(out)
    named = named_code(recipe)
    require_trust(named, out, trust_code=trust_code, asked_before=resume)
    trusted = bool(named)  # else nothing of others is run, whatever has become of the folders meanwhile
    if recipe.data.detection is not None:
        if resume:
            complete(out / "config.yaml")
        run = run_detection(recipe, out, resume=resume, progress=progress, latency=latency, trust_code=trusted)
        return RunResult(recipe=recipe, **run)
    data = open_data(recipe)
    net = build_model(recipe, data.num_classes, data.class_names, trust_code=trusted)
    if recipe.weights is not None:
        taken = take_weights(net, recipe.weights, num_classes=data.num_classes, trust_code=trusted)
        if progress and is_main_process():
            print(f"weights of {recipe.weights}: {taken}", flush=True)
    data = _as_trained(contract_of(net), recipe, data)
    if progress and is_main_process():
        _print_remarks((*data.remarks, *_parts(data)))
    objective: nn.Module
    if recipe.auxiliary or recipe.drop_path:
        batches = len(data.train_loader())
        objective = ClassifyWithTower(
            net,
            auxiliary=recipe.auxiliary,
            drop_path=recipe.drop_path,
            total_steps=recipe.epochs * min(batches, recipe.steps_per_epoch or batches),
            label_smoothing=recipe.label_smoothing,
        )
    elif recipe.elastic is None:
        objective = Classify(
            net,
            label_smoothing=recipe.label_smoothing,
            mixup=recipe.mixup,
            frozen_norms=recipe.frozen_norms,
            teacher=None if recipe.teacher is None else load_teacher(recipe.teacher, data, trust_code=trusted),
            hard_labels=recipe.hard_labels,
            seed=recipe.seed,
        )
    else:
        objective = mutual_objective(cast("ElasticNet", net), recipe.elastic, recipe.seed, data, trusted)
    with held(out) if is_main_process() else nullcontext():
        return _carry_out(recipe, net, objective, data, out, resume=resume, progress=progress, latency=latency)


def _carry_out(
    recipe: Recipe,
    net: nn.Module,
    objective: nn.Module,
    data: ImageData | VideoData,
    out: Path,
    *,
    resume: bool,
    progress: bool,
    latency: bool,
) -> RunResult:
    """Train, measure, save and test, by whoever holds the run folder."""
    said = data.remarks
    if resume:
        complete(out / "config.yaml")
    recipe, sentence = choose_kernels(recipe, net, len(data.train_loader()), out, resume=resume)
    if sentence and progress and is_main_process():
        print(sentence, flush=True)
    with training_form(recipe, net):
        settings = recipe.fit_settings()
        result = fit(objective, data, settings, out, config=to_data(recipe), resume=resume, progress=progress)
    if progress and is_main_process():
        _print_remarks(remark for remark in data.remarks if remark not in said)
    attach(net, _contract(data, recipe))
    alone = rank_and_world()[1] == 1  # also when a finished run is resumed: then nothing started the others
    if alone and not is_main_process():
        return RunResult(recipe=recipe, fit=result, net=net, model_folder=out / "model")
    table = None if recipe.elastic is None else measured_table(net, data, recipe, latency=latency)
    if not is_main_process():
        return RunResult(recipe=recipe, fit=result, net=net, model_folder=out / "model", table=table)
    for name in ("table.json", "table.csv"):
        if table is not None:
            table.save(out / name)
    from leanconv.build import save

    folder = save(net, out / "model", size=recipe.data.input_size)
    done = RunResult(recipe=recipe, fit=result, net=net, model_folder=folder, table=table)
    if recipe.data.video is None:
        return replace(done, images=score_image_run(net, cast("ImageData", data), recipe, out))
    return replace(done, videos=score_run(net, cast("VideoData", data), recipe, out))


def _parts(data: ImageData | VideoData) -> list[str]:
    """A sentence on what is chosen by which part of the data, where it may surprise."""
    what = f"{data.unit}s"
    if not data.has_validation:
        return [
            "no validation part: epochs are tested on the test part, and nothing is chosen by it (data.validation=0.1"
            f" holds out a tenth of the training {what})"
        ]
    if not data.has_test:
        return [
            f"no test part: the accuracy is that of the validation {what}, by which the best epoch is chosen; the saved"
            " model is that of the last epoch"
        ]
    return []


def _as_trained(contract: InputContract | None, recipe: Recipe, data: ImageData | VideoData) -> ImageData | VideoData:
    """`data` with the mean and std that the weights were trained with, unless the recipe has its own, and with classes
    numbered as the classifier has them."""
    if contract is None:
        return data
    settings, video = recipe.data, recipe.data.video
    given = video or settings
    if len(contract.mean) != data.channels:
        raise LeanconvError(
            f"{recipe.model}: its input contract is for {len(contract.mean)} channels, and the data have"
            f" {data.channels}: it belongs to another network"
        )
    names = contract.class_names if set(contract.class_names or ()) == set(data.class_names) else None
    changed = settings
    if given.mean is None and given.std is None:
        mean, std = cast("tuple[Any, Any]", (contract.mean, contract.std))
        changed = (
            replace(settings, mean=mean, std=std)
            if video is None
            else replace(settings, video=replace(video, mean=mean, std=std))
        )
    if changed is settings and names in (None, data.class_names):
        return data
    return open_data(replace(recipe, data=changed), class_names=names)


def _contract(data: ImageData | VideoData, recipe: Recipe) -> InputContract:
    """What the network that was trained on `data` is to be fed."""
    contract, video = data.contract, recipe.data.video
    if contract.clip is None or video is None:
        return contract
    return replace(contract, clip=replace(contract.clip, clips=video.test_clips, crops=video.test_crops))


def _print_remarks(remarks: Iterable[str]) -> None:
    for remark in remarks:
        print(remark, flush=True)
