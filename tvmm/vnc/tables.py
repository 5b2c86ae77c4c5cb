"""The protocol's tables as text, for docs/vnc-protocol.md: ``python -m tvmm.vnc.tables`` prints them."""

from __future__ import annotations

from tvmm.vnc.client_messages import CLIENT_MESSAGES
from tvmm.vnc.encodings import encodings_table
from tvmm.vnc.states import states_table

__all__ = ["encodings_table", "messages_table", "states_table"]

def messages_table() -> str:
    """`CLIENT_MESSAGES` in Markdown."""
    lines = ["| type | message | |", "| --- | --- | --- |"]
    for number, kinds in CLIENT_MESSAGES.items():
        for kind in kinds:
            text = (kind.__doc__ or "").strip().partition("\n")[0].partition(". ")[0].rstrip(".")
            lines.append(f"| {number} | {kind.__name__} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(states_table(), messages_table(), encodings_table(), sep="\n\n")
