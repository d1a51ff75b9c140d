"""What several processes say at a time comes out in whole lines."""

import multiprocessing
import threading

from experiments.table.heard import Speaker, heard


def say(end, name):
    speaker = Speaker(end)
    for number in range(50):
        for part in (name, " says ", f"{number}", "\n"):  # as print writes
            speaker.write(part)
        speaker.tell(name, "step", step=number)


def test_no_line_is_torn_and_none_is_lost(capsys):
    told = []
    context = multiprocessing.get_context("spawn")

    def tell(name, phase, step):
        told.append((name, step))

    with heard(context, 2, tell) as ends:
        both = [threading.Thread(target=say, args=x) for x in zip(ends, "ab")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    lines = capsys.readouterr().out.splitlines()
    for name in "ab":
        own = [line for line in lines if line.startswith(name)]
        assert own == [f"{name} says {number}" for number in range(50)]
        assert [step for other, step in told if other == name] == [*range(50)]
    assert len(lines) == 100
    Speaker(ends[0]).write("nobody hears it\n")
