"""Print docs/options.md from the option records, the only place where options are written.

Usage: python docs/generate_options.py > docs/options.md
"""

from pipeline.cli.commands import COMMANDS, find
from pipeline.config import options
from pipeline.config.fields import flag_of


def document() -> str:
    """Return the page."""
    lines = [
        "# Options",
        "",
        "Printed by `docs/generate_options.py`. Every option is a flag and a key of the command's",
        "table in a TOML file given by `--config` (`image_size = 64` under `[extract]`; a head's",
        "parameters under `[heads.NAME]`). A flag beats the file, the file beats the default.",
        "A path may begin with `~` or `~user`, in flags, files and Python alike; a folder that is",
        "really called `~` is `./~`.",
    ]
    lines += _table("Every command", "Options of every command.", options.CommonOptions)
    for name, row in COMMANDS.items():
        lines += _table(f"pipeline {name}", row.summary, find(name).options)
    return "\n".join(lines) + "\n"


def _table(title: str, summary: str, record: type) -> list[str]:
    lines = ["", f"## {title}", "", summary, ""]
    lines += ["| option | values | default | what |", "|--|--|--|--|"]
    listed = sorted(options.options_of(record).items(), key=lambda item: not item[1].positional)
    for name, option in listed:
        shown = option.metavar if option.positional else f"`{flag_of(name)}`"
        values = " ".join(option.choices) or ("" if option.positional else option.metavar)
        default = options.default_of(record, name)
        default = " ".join(default) if isinstance(default, tuple) else default
        default = "" if default is None or default is False or default == "" else f"`{default}`"
        cells = (shown, values.replace("|", " "), default, option.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    print(document(), end="")
