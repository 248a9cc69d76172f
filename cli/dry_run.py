"""What `--dry-run` and `--print-config` show: what would be done, or the resolved configuration, or both as JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from kdtool.cli.console import in_units, print_json, print_line

Found = Mapping[str, Any]


def show_dry(found: Found, config_alone: bool, json: bool, show: Callable[[Found], None]) -> None:
    """Prints what was found; show: prints it for people. Under torchrun rank 0 alone speaks."""
    from kdtool.engine.ranks import own_rank
    from kdtool.engine.runs import toml

    if own_rank() > 0:
        return
    if config_alone:
        print_json(found["config"]) if json else print_line(toml(found["config"]).rstrip())
    elif json:
        print_json({**found, "dry_run": True})
    else:
        show(found)
        print_line("dry run: nothing was written")


def show_training(found: Found) -> None:
    """Prints what teach or distill would do."""
    if found["state"] == "finished":
        print_line(f"{found['folder']} holds this run already; nothing would be done")
        return
    recipe, width, height = found["recipe"], found["image_shape"][2], found["image_shape"][1]
    size = f"{found['parameters']:,} parameters"
    if "method" in found:
        print_line(f"student {found['network']} ({size}) by {'+'.join(found['method']) or 'no teacher'}")
        print_line(f"from {found['cache']}: {found['views']:,} views, teacher {found['teacher']}")
    else:
        print_line(f"teacher {found['network']} ({size})")
    if found["begins_from"]:
        print_line(f"begins from {found['begins_from']}")
    images = ", ".join(f"{count:,} {part}" for part, count in found["images"].items())
    print_line(f"data {found['data']}: {images} images of {width}x{height}, {found['classes']:,} classes")
    print_line(
        f"recipe: batch {recipe['batch']:,}, {recipe['optimizer']}, learning rate {recipe['learning_rate']:g}, "
        f"weight decay {recipe['weight_decay']:g}, {recipe['schedule']}"
    )
    for stage in found["stages"]:
        print_line(f"stage {stage['name']}: {stage['epochs']:,} epochs of {stage['steps']:,} steps")
        print_line(f"  loss: {stage['loss']}")
    print_line(f"in all {found['steps']:,} steps, on {found['device']} in {found['precision']}")
    room = f", and up to {in_units(found['scratch_bytes'])} while it runs" if found["scratch_bytes"] else ""
    print_line(f"writes {in_units(found['bytes'])} of weights{room}; {in_units(found['free_bytes'])} are free")
    if found["at"]:
        at = found["at"]
        print_line(f"{found['folder']}: would go on, {found['steps_left']:,} steps are left")
        print_line(f"  at stage {at['stage']}, epoch {at['epoch']}, after step {at['step']:,}")
    else:
        print_line(f"{found['folder']}: would begin anew")
