"""Format of the help: no boxes, so that all options of a verb fit on one screen (40 lines of 100 columns)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

__all__ = ["OneScreen"]


class OneScreen:
    """Formatter of groups of options as a title and a table, in place of cyclopts' panels."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one group."""
        from cyclopts.help.specs import (
            DefaultStyled,
            TableSpec,
            get_default_command_columns,
            get_default_parameter_columns,
        )
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        if not panel.entries:
            return
        if panel.format == "command":
            columns = get_default_command_columns(console, options, panel.entries)
        else:
            columns = get_default_parameter_columns(console, options, panel.entries)
        table = TableSpec().build(columns, panel.entries)
        title = panel.title if isinstance(panel.title, Text) else Text(str(panel.title))
        title.stylize("bold")
        console.print(DefaultStyled(Group(title, Padding(table, (0, 0, 0, 2)))))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the line of usage, without an empty one after it."""
        from cyclopts.help.specs import DefaultStyled
        from rich.text import Text

        if usage:
            line = f"Usage: {str(usage).strip()}"
            console.print(DefaultStyled(Text(line, style="cyclopts.usage")))

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Print the description of a verb and its examples, without empty lines."""
        if description:
            text = str(getattr(description, "primary_renderable", description))
            lines = [line for line in text.splitlines() if line.strip()]
            console.print("\n".join(lines), markup=False, highlight=False)
