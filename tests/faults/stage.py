"""The state in which a fault finds a dataset, and what must be there after it, and after the next run."""

from collections.abc import Sequence

from pipeline.workspace import Workspace
from tests.faults.harness import (
    Template,
    Work,
    contents,
    deliver_late,
    left,
    losses,
    refill,
    run,
    states_of,
    torn,
    unended,
    whole_night,
    workspace,
)
from tests.faults.kills import Walked, walk


class Stage:
    """The state in which a fault finds a dataset, kept to be put back, and what an undisturbed run makes of it.

    before: what was done or delivered since the template: `night`, `late`
    """

    def __init__(self, template: Template, work: Work = whole_night, before: Sequence[str] = ()) -> None:
        self.template, self.work = template, work
        self.place, self.night = template.place, template.night
        template.fresh()
        if "night" in before:
            assert run(whole_night, self.place, self.night).code == 0
        if "late" in before:
            deliver_late(self.workspace, template.kind)
        self.kept = template.kept.with_name(f"{work.__name__}-{'-'.join(before)}")
        refill(self.kept, self.place)
        beginning = contents(self.workspace)
        ended = run(walk, work, self.place, self.night)
        assert ended.code == 0, ended.said
        self.walked: Walked = ended.value
        self.expected = left(self.workspace, self.walked.value)
        self.seen = states_of(self.workspace)
        assert self.expected.tables != beginning, "nothing is done that could be lost"

    @property
    def workspace(self) -> Workspace:
        """The workspace in the place."""
        return workspace(self.place)

    def begin(self) -> None:
        """Put the beginning into the place."""
        refill(self.place, self.kept)

    def torn(self) -> list[str]:
        """What a reader sees now that no undisturbed run ever shows; raises where a table cannot be read."""
        return [f"torn: {what}" for what in (*torn(self.workspace, self.seen), *unended(self.workspace))]

    def mended(self) -> list[str]:
        """Run again, undisturbed: what differs then from the undisturbed run, each in words."""
        again = run(self.work, self.place, self.night)
        if again.code:
            return [f"the next run failed: {again.said}"]
        return losses(left(self.workspace, again.value), self.expected)
