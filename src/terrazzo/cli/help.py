"""How help looks: no boxes, so that all options of a verb stand on one screen (40 lines of 100 columns)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions


class OneScreen:
    """Prints groups of options as a title and a table; takes the place of cyclopts' panels."""

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
        columns = (
            get_default_command_columns
            if panel.format == "command"
            else get_default_parameter_columns
        )
        table = TableSpec().build(columns(console, options, panel.entries), panel.entries)
        title = panel.title if isinstance(panel.title, Text) else Text(str(panel.title))
        title.stylize("bold")
        console.print(DefaultStyled(Group(title, Padding(table, (0, 0, 0, 2)))))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the line of usage, without an empty one after it."""
        from cyclopts.help.specs import DefaultStyled
        from rich.text import Text

        if usage:
            console.print(
                DefaultStyled(Text(f"Usage: {str(usage).strip()}", style="cyclopts.usage"))
            )

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Print what the verb does and its examples, without empty lines."""
        if description:
            text = str(getattr(description, "primary_renderable", description))
            console.print(
                "\n".join(line for line in text.splitlines() if line.strip()),
                markup=False,
                highlight=False,
            )
