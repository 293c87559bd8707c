"""``python -m pipelines.publish``: print docs/settings.md, the table of every setting of a run."""

from pipelines.form import FLAT, SETTINGS, settings_table
from pipelines.settings import COMPONENTS, RunSettings

_HEAD = f"""# The settings of a run

This page is generated from the settings' declarations by `make settings`. A wrong name or value is an error
before anything is done. On the command line a setting is `--set name=value`, or a line of the file given with
`--settings`. In the form of Kubeflow Pipelines, the first table's settings are separate parameters; all
others are lines of the parameter `{SETTINGS}`.

"""


def settings_page() -> str:
    """Return the page as Markdown: the form's settings, those of each component, and the run's."""
    left = [name for name in RunSettings.model_fields if name not in FLAT]
    parts = [("In the form", list(FLAT))]
    for component, model in COMPONENTS.items():
        own = [name for name in model.model_fields if name in left]
        left = [name for name in left if name not in own]
        if own:
            parts.append((f"`{component}`", own))
    parts.append(("The run", left))
    return _HEAD + "\n\n".join(f"## {title}\n\n{settings_table(names)}" for title, names in parts)


if __name__ == "__main__":
    print(settings_page())
