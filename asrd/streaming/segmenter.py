"""The ten seconds: speech on the sample clock -> buffers that a model can decode.

A pause seals: what was said goes out as one buffer, decoded once. Speech that outruns the window
goes out as an open buffer; the transcript keeps the words that end well before its edge and says
where it stopped (`commit`), and the next buffer starts a little before that. Between these, whoever
has time may look: at what a seal would give (`ahead`) while speech rests, and at what was said so
far (`partial`) while it goes on. Silence is never decoded.

Buffers begin on one grid of frames, counted from the first sample. An encoder with frames of 80 ms
puts out other numbers for a sound that begins 40 ms later, and where two words are about as likely
that decides: of the words that windows had otherwise than a decode of the whole, more than half
were due to nothing else (tools/bench, R9).

Knows nothing of words or models. Daemon side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from asrd.audio.blocks import AudioBlock, Samples
from asrd.audio.format import SAMPLE_RATE
from asrd.audio.vad import VadEvent, VadSettings

GRID_SAMPLES = SAMPLE_RATE * 8 // 100
"""Samples: the frame of a FastConformer, and a whole number of frames of every other encoder of
NeMo's."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentBuffer:
    """Sound for one request to the model."""

    start: int
    """Sample index of the first sample."""
    samples: Samples
    """At most the window's size; may begin with sound that an earlier buffer held already (left
    context)."""
    final: bool
    """True: it ends in a pause and every word in it is final. False: it ends within speech,
    `commit` must follow."""
    sure: bool = True
    """False where all of its speech was doubtful to the detector (`VadEvent.sure`)."""
    lead: int = 0
    """Samples at its start that are there for the grid alone."""

    @property
    def stop(self) -> int:
        """One past the last sample."""
        return self.start + len(self.samples)


@dataclass(slots=True)
class _Segment:
    """Speech that is still to be decoded."""

    floor: int
    """No buffer starts before it: the opening, or the last seal."""
    fresh: int
    """First sample whose words are not committed."""
    speech_stop: int = 0
    """One past its last sample of speech, once it has closed."""
    stop: int | None = None
    """One past its last sample, once it has closed."""
    sure: bool = True
    lead: int = 0
    """Samples from its floor to where the detector opened it."""


class Segmenter:
    """Collects blocks and hands out buffers of at most `seconds`.

    `push` blocks, then `take` buffers until there is none. After an open buffer `take` returns None
    until `commit` has reported how far the words reach; meanwhile blocks may go on
    coming.

    Args:
        seconds: the longest buffer.
        left: seconds of context before the first uncommitted word.
        search: a cut is sought within so many last seconds of a full window.
        rest: the shortest pause that a full window may be sealed at, in seconds.
        lookback: samples kept in silence, as an opening lies before the end of the block that told
            it (`VadSettings.lookback`).
        post_roll: seconds that the detector leaves after the last speech of what it closes
            (`VadSettings.post_roll`).
    """

    def __init__(
        self,
        seconds: float = 10.0,
        left: float = 2.5,
        search: float = 3.0,
        rest: float = 0.2,
        lookback: int = VadSettings().lookback,
        post_roll: float = VadSettings().post_roll,
    ) -> None:
        self.size = round(seconds * SAMPLE_RATE)
        self.left = min(round(left * SAMPLE_RATE), self.size // 2)
        self.search = min(round(search * SAMPLE_RATE), self.size // 2)
        self.rest = round(rest * SAMPLE_RATE)
        self.lookback = lookback
        self.post_roll = round(post_roll * SAMPLE_RATE)
        self._blocks: deque[AudioBlock] = deque()
        self._segments: deque[_Segment] = deque()
        self._pauses: deque[tuple[int, int]] = deque()
        self._paused_at: int | None = None
        self._out: SegmentBuffer | None = None
        self._known_until = 0
        self._closed = 0

    def push(self, block: AudioBlock, events: Iterable[VadEvent] = ()) -> None:
        """Add the next block and the events of the detector so far."""
        self._blocks.append(block)
        self.note(events)

    def note(self, events: Iterable[VadEvent]) -> None:
        """Take in events alone, as `Vad.finish` gives them. Raises ValueError for speech that is no
        longer held."""
        for event in events:
            self._known_until = event.known_at
            if event.kind == "open":
                if not self._blocks or event.at < self._blocks[0].start:
                    raise ValueError(
                        f"speech opened at {event.at}, before the sound that is held; raise lookback"
                    )
                floor = max(on_grid(event.at), self._blocks[0].start, self._closed)
                self._segments.append(_Segment(floor, event.at, lead=event.at - floor))
            elif event.kind == "pause":
                self._paused_at = event.at
            elif event.kind == "resume":
                if self._paused_at is not None:
                    self._pauses.append((self._paused_at, event.at))
                self._paused_at = None
            else:
                segment = self._segments[-1]
                segment.stop = self._closed = event.at
                segment.sure = event.sure
                segment.speech_stop = event.at if self._paused_at is None else self._paused_at
                self._paused_at = None
        self._forget()

    @property
    def held(self) -> int:
        """Samples in memory."""
        if not self._blocks:
            return 0
        return self._blocks[-1].stop - self._blocks[0].start

    def take(self) -> SegmentBuffer | None:
        """Return the next buffer, or None until more audio comes or the open buffer is committed."""
        if self._out is not None and not self._out.final:
            return None
        self._out = None
        while self._segments:
            segment = self._segments[0]
            begin = self._begin(segment)
            if segment.stop is not None:
                begin = self._last_begin(segment, segment.speech_stop)
                if segment.speech_stop - begin <= self.size:
                    self._segments.popleft()
                    if segment.speech_stop <= segment.fresh:
                        continue
                    lead = segment.lead if begin == segment.floor else 0
                    return self._give(
                        begin, min(segment.stop, begin + self.size), True, segment.sure, lead
                    )
            if self._blocks[-1].stop - begin < self.size:
                return None
            return self._full(segment, begin)
        return None

    def ahead(self) -> SegmentBuffer | None:
        """Return the buffer that `take` would give if the speech that rests now were over; None
        while it goes on.

        It is not taken: when speech goes on after all, nothing has happened.
        """
        segment = self._last_open()
        if segment is None or self._paused_at is None or self._paused_at <= segment.fresh:
            return None
        begin = self._last_begin(segment, self._paused_at)
        stop = min(self._known_until, self._paused_at + self.post_roll, begin + self.size)
        if self._paused_at - begin > self.size:
            return None
        return SegmentBuffer(begin, self._audio(begin, stop), final=True)

    def partial(self) -> SegmentBuffer | None:
        """Return the audio since the last commit, with context, while speech is open and fits; it
        stays in the segmenter."""
        segment = self._last_open()
        if segment is None:
            return None
        begin, stop = self._begin(segment), self._blocks[-1].stop
        if not 0 < stop - begin <= self.size:
            return None
        return SegmentBuffer(begin, self._audio(begin, stop), final=False)

    @property
    def due(self) -> int:
        """Samples of speech that could be decoded by now and are not."""
        if not self._segments:
            return 0
        first, last = self._segments[0], self._segments[-1]
        if last.stop is not None:
            return max(0, last.stop - first.fresh)
        newest = self._blocks[-1].stop
        if first is last:
            return max(0, newest - self.size - self._begin(first))
        return newest - first.fresh

    def _last_open(self) -> _Segment | None:
        """Return the segment that goes on, where it is the only one and no buffer is out."""
        if len(self._segments) != 1 or (self._out is not None and not self._out.final):
            return None
        if self._segments[0].stop is not None:
            return None
        return self._segments[0]

    def _begin(self, segment: _Segment) -> int:
        """Return where the next buffer of a segment starts."""
        return max(segment.floor, on_grid(segment.fresh - self.left))

    def _last_begin(self, segment: _Segment, speech_stop: int) -> int:
        """Return where it starts if speech is over: with half the context rather than one more open
        buffer."""
        fits = on_grid(
            speech_stop - self.size + GRID_SAMPLES - 1
        )  # the next on the grid, as the one before would be too long
        return max(self._begin(segment), min(fits, on_grid(segment.fresh - self.left // 2)))

    def commit(self, until: int) -> None:
        """Tell that every word of the last buffer before sample `until` is final.

        After an open buffer the next one starts `left` before that. After a sealed one it is needed
        only where the model gave up early: what is left of the buffer goes out once more.
        """
        buffer, self._out = self._out, None
        if buffer is None:
            return
        if not buffer.final:
            # A window of which nothing could be committed still has to move on, by a quarter at
            # least.
            least = buffer.start + self.left + self.size // 4
            self._segments[0].fresh = min(max(until, least), buffer.stop)
        elif buffer.start < until < buffer.stop - self.size // 20:
            floor = on_grid(max(until - self.left, buffer.start + self.size // 8))
            if floor < buffer.stop - self.size // 20:
                self._segments.appendleft(
                    _Segment(floor, max(until, floor), buffer.stop, buffer.stop)
                )
        self._forget()

    def _full(self, segment: _Segment, begin: int) -> SegmentBuffer:
        """Return the buffer for a window that is full: sealed at its last pause if there is one,
        else open."""
        edge = begin + self.size
        resting = (
            []
            if self._paused_at is None or len(self._segments) > 1
            else [(self._paused_at, self._known_until)]
        )
        for start, stop in (*resting, *reversed(self._pauses)):
            middle = (start + stop) // 2
            if (
                max(edge - self.search, segment.fresh) < middle <= edge
                and stop - start >= self.rest
            ):
                segment.floor, segment.fresh, segment.lead = on_grid(middle), middle, 0
                return self._give(begin, middle, final=True)
        return self._give(begin, begin + self._quietest(self._audio(begin, edge)), final=False)

    def _quietest(self, samples: Samples) -> int:
        """Return where the 40 ms with the least energy lie within the last tenth of a full
        window."""
        step = SAMPLE_RATE // 50
        tail = samples[-(self.size // 10) // step * step :]
        energy = np.square(tail).reshape(-1, step).mean(axis=1)
        return len(samples) - len(tail) + step * (int(np.argmin(energy[:-1] + energy[1:])) + 1)

    def _give(
        self, start: int, stop: int, final: bool, sure: bool = True, lead: int = 0
    ) -> SegmentBuffer:
        self._out = SegmentBuffer(start, self._audio(start, stop), final, sure, lead)
        self._forget()
        return self._out

    def _audio(self, start: int, stop: int) -> Samples:
        """Return the audio from `start` to `stop` as one contiguous array."""
        return np.concatenate(
            [
                block.samples[max(0, start - block.start) : stop - block.start]
                for block in self._blocks
                if block.stop > start and block.start < stop
            ]
        )

    def _forget(self) -> None:
        """Drop audio and pauses that no later buffer can need."""
        if self._segments:
            keep = self._begin(self._segments[0])
        else:
            keep = self._blocks[-1].stop - self.lookback - GRID_SAMPLES if self._blocks else 0
        if self._out is not None:
            keep = min(keep, self._out.start)
        while self._blocks and self._blocks[0].stop <= keep:
            self._blocks.popleft()
        while self._pauses and self._pauses[0][1] <= keep:
            self._pauses.popleft()


def on_grid(sample: int) -> int:
    """Return the last sample on the grid that is not after this one."""
    return sample - sample % GRID_SAMPLES
