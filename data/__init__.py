"""Pictures for training: folders of them, the targets made from them, Lightning's data modules."""

from data.datamodule import DIV2K, Folder, Kodak, Targets
from data.images import list_pictures, read_rgb
from data.prepare import PrepareTargets, TargetRecipe, prepare_picture, read_items

__all__ = [
    "DIV2K",
    "Folder",
    "Kodak",
    "PrepareTargets",
    "TargetRecipe",
    "Targets",
    "list_pictures",
    "prepare_picture",
    "read_items",
    "read_rgb",
]
