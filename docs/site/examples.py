"""Shows `Example:` of docstrings as code: griffe knows `Examples:` alone."""

import griffe


class Examples(griffe.Extension):
    """Renames the section before it is parsed."""

    def on_object(self, *, obj, **_):
        """Of any object with a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace(
                "\nExample:\n", "\nExamples:\n"
            )
