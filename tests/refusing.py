"""Commands that must refuse what they are given, through the command line, as a user meets it."""

from talltree import cli

from .stages import toy


def refusing(folder, capsys):
    """A function that runs a stage which must refuse its arguments, and gives the one line that it says."""

    def run(stage, *arguments):
        before = files(folder)
        status = cli.main([stage, *map(str, arguments)])
        error = capsys.readouterr().err
        assert status == 2, error
        (line,) = error.splitlines()
        assert line.startswith(f"talltree {stage}: error: ")
        assert files(folder) == before, "a refused command changes nothing"
        return line.removeprefix(f"talltree {stage}: error: ")

    return run


def files(folder):
    found = toy.contents(folder)
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def assert_says(line, *parts):
    for part in map(str, parts):
        assert part in line, line
