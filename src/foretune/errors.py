"""The one exception for mistakes in what the user gave us."""


class InputError(ValueError):
    """The input is wrong: the message names the place, what was found there, and what to write instead.

    The command line prints it as one line and exits with code 2.

    Args:
        where: The file and field, such as ``run.yaml: data.label``.
        found: What is there, such as ``no column 'sentiment' in train.jsonl``.
        fix: What to write instead, such as ``write one of: text, label``.
    """

    def __init__(self, where: str, found: str, fix: str) -> None:
        self.where, self.found, self.fix = where, found, fix
        super().__init__(f"{where}: {found}. {fix[:1].upper()}{fix[1:].rstrip('.')}.")
