"""What the server of `kills` imports once, so that its processes need not."""
# ruff: noqa: F401

import lightning.pytorch
import sklearn.datasets
import torch
import torch.utils.tensorboard

import leanconv.cli
import leanconv.data.video
import leanconv.deploy
import leanconv.query
import leanconv.recipes
import leanconv.train.callbacks
import leanconv.train.checkpoint_io
import leanconv.train.stop

torch.set_num_threads(1)
