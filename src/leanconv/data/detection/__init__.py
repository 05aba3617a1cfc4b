"""Pictures with the objects in them, in COCO's format: boxes, polygons and run-length masks, crowds."""
