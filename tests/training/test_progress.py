"""What a person sees of the progress."""

import multiprocessing

import pytest

from audioldm2_jax.training.progress import Pipe, Report, Screen


def test_lines_where_output_is_no_terminal(capsys):
    with Screen(interval=1000.0) as screen:
        screen.say("hello")
        screen.report(Report("vae", 10, 30, 1.5, 40.0, 75.0))
        screen.report(Report("vae", 20, 30, 1.25, 40.0, 7265.0))  # too soon
        screen.report(Report("clap", 1, 5, 2.0, 40.0, 7265.0))  # another stage's clock
        screen.report(Report("vae", 30, 30, 1.0, 40.0, 0.0))  # the end always shows
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hello"
    assert [line.split()[:3] for line in lines[1:]] == [
        ["vae", "step", "10/30"],
        ["clap", "step", "1/5"],
        ["vae", "step", "30/30"],
    ]
    assert "loss 1.5" in lines[1] and "40 examples/s" in lines[1] and "1:15 left" in lines[1]
    assert "2:01:05 left" in lines[2]


@pytest.mark.parametrize("terminal", [False, True])
def test_texts_of_users_are_shown_as_they_are_written(capsys, monkeypatch, terminal):
    """No markup of rich, and nothing that a terminal obeys."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    with Screen() as screen:
        screen.say("/data/[bold]a[/bold] \x1b[2J\x07 \u202e b\nsecond line")
        screen.report(Report("[red]vae", 1, 1, 1.0, 1.0, 1.0))
    out = capsys.readouterr().out
    assert "/data/[bold]a[/bold] \\x1b[2J\\x07 \\u202e b\nsecond line\n" in out and "[red]vae" in out


def test_pipe_sends_what_a_screen_shows():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    pipe, report = Pipe(theirs), Report("vae", 1, 2, 3.0, 4.0, 5.0)
    pipe.report(report)
    pipe.say("text")
    assert [ours.recv(), ours.recv()] == [("report", report), ("say", "text")]
