"""The speech that trains and tests the demo models: a closed grammar, Debian's synthesisers, rooms
and noise.

Everything is drawn from a number: the same clip number of the same split gives the same sentence,
voice and sound. What is held out is held out here: sentences by a hash of their text, voices by the
lists below.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Wave: TypeAlias = npt.NDArray[np.float32]  # mono, 16 kHz, about -1..1
Sound: TypeAlias = tuple[npt.NDArray[Any], int]  # what an engine gives: samples, rate in Hz

RATE = 16_000

# ----------------------------------------------------------------------------------------------
# what is said

GRAMMAR = {
    "digit": "zero|one|two|three|four|five|six|seven|eight|nine",
    "unit": "one|two|three|four|five|six|seven|eight|nine",
    "teen": "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen",
    "tens": "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety",
    "number": "@digit|@digit|@teen|@tens|@tens @unit",
    "code": "@digit @digit @digit|@digit @digit @digit @digit|@code @digit|@code @digit",
    "name": "alice|robert|maria|peter|susan|david|helen|thomas",
    "day": "monday|tuesday|wednesday|thursday|friday|saturday|sunday",
    "object": "window|door|report|letter|meeting|garden|kitchen|computer|music|light|camera|coffee|ticket|train"
    "|river|mountain|village|market|doctor|teacher",
    "quality": "red|green|blue|yellow|small|large|quiet|early|late|new|old|warm|cold|happy",
    "verb": "open|close|start|stop|check|send|read|write|find|move|clean|buy|bring",
    "place": "office|station|school|hospital|library|airport|hotel|museum",
    "hour": "@unit|ten|eleven|twelve",
    "time": "@hour thirty|@hour fifteen|@hour o'clock|@hour forty five|noon|midnight",
    "when": "on @day|at @time|on @day at @time|tomorrow|tomorrow morning|this evening|next week|after lunch",
    "thing": "@owner @object|@owner @quality @object",
    "owner": "the|my|a|your",
    "polite": "please|can you|",
    "degree": "very|not|too|",
    "state": "late|happy|at the @place|in the @place",
    "command": "new line|full stop|comma|question mark|new paragraph|delete that|undo last word|select all"
    "|save the file|go to sleep|hello|thank you|yes please|no thank you|cancel that",
    "sentence": "@code|@command|@polite @verb @thing @when|@polite @verb @thing @when"
    "|remind me to @verb @thing and @verb @thing|remind me to @verb @thing before i @verb @thing"
    "|send a message to @name and say that i am @state|meet @name at the @place @when"
    "|@thing is @degree @quality today|@thing is @degree @quality @when"
    "|@thing is @degree @quality and the @object is @quality"
    "|set a timer for @number @span|set an alarm for @number @span"
    "|@name and @name @past @number @goods @when|@people @travel from @thing to the @place @when"
    "|call @name at @code",
    "span": "minutes|hours|seconds",
    "past": "bought|found|saw|wanted",
    "goods": "tickets|letters|reports|cameras",
    "people": "we|they|i",
    "travel": "walked|went|drove",
}


def expand(symbol: str, r: random.Random) -> str:
    """Draw one phrase of the grammar: an alternative, with each @symbol in it drawn in turn."""
    words = r.choice(GRAMMAR[symbol].split("|")).split()
    return " ".join(filter(None, (expand(w[1:], r) if w[0] == "@" else w for w in words)))


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word the grammar can say, sorted."""
    rules = " ".join(GRAMMAR.values()).replace("|", " ")
    return tuple(sorted({w for w in rules.split() if w[0] != "@"}))


def split_of(text: str) -> str:
    """Give 'train', 'dev' or 'test' by the text alone: no seed can move it; under four words is
    train."""
    if len(text.split()) < 4:
        return "train"
    bucket = hashlib.sha256(text.encode()).digest()[0] % 16
    return {0: "test", 1: "dev"}.get(bucket, "train")


def draw_text(r: random.Random, split: str, kind: str) -> str:
    """Draw an utterance of `split`; kinds: sentence, salad (words in any order), words (one to
    three)."""
    while True:
        if kind == "sentence":
            text = expand("sentence", r)
        else:
            count = r.choice((1, 1, 2, 3)) if kind == "words" else r.randint(4, 8)
            text = " ".join(r.choice(vocabulary()) for _ in range(count))
        if split_of(text) == split:
            return text


# ------------------------------------------------------------------------------------------------
# who says it

# The usable ones of `espeak-ng --voices=variant`, without whispers, robots and effects; held out by
# index.
ESPEAK_NAMES = """
    Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen
    RicishayMax RicishayMax2 RicishayMax3 Storm adam anika anikaRobot antonio aunty belinda benjamin boris caleb
    david ed edward edward2 f1 f2 f3 f4 f5 grandma grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt
    klatt2 klatt3 klatt4 klatt6 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel norbert pablo paul pedro
    quincy rob robert sandro shelby steph steph2 steph3 travis victor zac"""
ESPEAK_VARIANTS = tuple(ESPEAK_NAMES.split())
HELD_OUT_VARIANTS = ESPEAK_VARIANTS[5::9]
TRAINED_VARIANTS = [v for v in ESPEAK_VARIANTS if v not in HELD_OUT_VARIANTS]
ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-us-nyc",
    "en-029",
    "en-gb-x-gbclan",
)
HELD_OUT_ACCENT = "en-gb-x-gbcwmd"
MEAN_F0 = {
    "kal": 105,
    "kal16": 105,
    "rms": 100,
    "slt": 170,
    "awb": 120,  # Hz, what the voice has by itself
    "kal_diphone": 105,
    "ked_diphone": 110,
    "cmu_us_slt_arctic_hts": 170,
}
ENGINES = {"espeak-ng": 54, "flite": 27, "festival": 19}  # parts of the clips that each speaks
TRAINED, HELD_OUT = "trained voice", "held-out voice"
NEVER = {  # group -> engine, the voice no training clip has
    "never trained: accent": ("espeak-ng", HELD_OUT_ACCENT),
    "never trained: awb": ("flite", "awb"),
    "never trained: hts": ("festival", "cmu_us_slt_arctic_hts"),
}
GROUPS = (TRAINED, HELD_OUT, *NEVER)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One voice as one utterance has it; pitch, tempo and tract (formants) are factors on the
    engine's own."""

    engine: str
    voice: str
    pitch: float = 1.0
    tempo: float = 1.0
    tract: float = 1.0


def draw_voice(r: random.Random, group: str) -> tuple[str, str]:
    """Draw engine and voice of a group."""
    if group in NEVER:
        engine, voice = NEVER[group]
        return engine, voice + "+" + r.choice(TRAINED_VARIANTS) if engine == "espeak-ng" else voice
    if group == HELD_OUT:
        return "espeak-ng", f"{r.choice(ACCENTS)}+{r.choice(HELD_OUT_VARIANTS)}"
    engine = r.choices(tuple(ENGINES), tuple(ENGINES.values()))[0]
    voices = {
        "espeak-ng": f"{r.choice(ACCENTS)}+{r.choice(TRAINED_VARIANTS)}",
        "flite": r.choices(("kal", "kal16", "rms", "slt"), (1, 2, 3, 3))[0],
        "festival": r.choice(("kal_diphone", "ked_diphone")),
    }
    if engine == "espeak-ng" and r.random() < 0.1:
        return engine, r.choice(ACCENTS)  # the plain voice, which most people would start
    return engine, voices[engine]


def draw_speaker(r: random.Random, group: str) -> Speaker:
    """Draw a voice of `group` with its pitch, tempo and vocal-tract length."""
    engine, voice = draw_voice(r, group)
    return Speaker(
        engine,
        voice,
        pitch=r.uniform(0.75, 1.35),
        tempo=r.uniform(0.8, 1.22),
        tract=r.choice((1.0, r.uniform(0.85, 1.18))),
    )


@dataclasses.dataclass(frozen=True)
class Clip:
    """What a recording is to hold: sentences with a speaker each (none: no speech), and how rough
    its sound is."""

    group: str
    kind: str
    sentences: tuple[str, ...]
    speakers: tuple[Speaker, ...]
    seed: int
    sound: str = "rough"  # or "mild", or "clean"

    @property
    def text(self) -> str:
        """What a recogniser should answer."""
        return " ".join(self.sentences)

    def describe(self) -> dict[str, Any]:
        """Give the index entry of the clip, without its place in the sound file."""
        return {
            "text": self.text,
            "group": self.group,
            "kind": self.kind,
            "sentences": list(self.sentences),
            "voice": ",".join(dict.fromkeys(s.voice for s in self.speakers)),
            "engine": ",".join(dict.fromkeys(s.engine for s in self.speakers)),
        }


KINDS = {"sentence": 50, "salad": 10, "words": 18, "long": 18, "empty": 4}
MEAN_SECONDS = 3.8  # of a clip, over KINDS
BREATH_SECONDS = 11.5  # of a 'breath'


def draw_sentences(r: random.Random, split: str, kind: str) -> list[str]:
    """Draw one utterance, or for 'long' several: 14 to 32 words, which are 5 to 14 s with the
    pauses.

    A 'talk' is long, and all of it sentences: no words in any order. A 'breath' is several as one,
    18 to 56 words: the engine speaks them through, and the words at their joins run into each
    other.
    """
    if kind not in ("long", "talk", "breath"):
        return [draw_text(r, split, kind)]
    sentences: list[str] = []
    target = r.randint(18, 50) if kind == "breath" else r.randint(14, 26)
    kinds = ("sentence",) * 4 + (("salad", "words") if split == "train" else ("salad",))
    kinds = ("sentence",) if kind == "talk" else kinds
    while sum(len(s.split()) for s in sentences) < target:
        sentences.append(draw_text(r, split, r.choice(kinds)))
    return [" ".join(sentences)] if kind == "breath" else sentences


def draw_clip(
    seed: int, split: str, group: str = TRAINED, kind: str = "", sound: str = "rough"
) -> Clip:
    """Draw clip number `seed` of a split; in 'long' one speaker says all (60 %) or each sentence
    has its own."""
    r = random.Random(f"{seed} {split} {group} {kind}")
    kind = kind or r.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    if kind == "empty":
        return Clip(group, kind, (), (), seed, sound)
    sentences = draw_sentences(r, split, kind)
    while (
        split == "train" and split_of(" ".join(sentences)) != "train"
    ):  # joined, they may be held out
        sentences = draw_sentences(r, split, kind)
    speakers = [draw_speaker(r, group) for _ in sentences]
    if r.random() < 0.6:
        speakers = speakers[:1] * len(sentences)
    return Clip(group, kind, tuple(sentences), tuple(speakers), seed, sound)


# -------------------------------------------------------------------------------------------- the
# synthesisers

APT = "sudo apt-get install espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
FESTIVAL = """(define (say voice f0 stretch path text)
  (voice)
  (set! int_lr_params
        (list (list 'target_f0_mean f0) '(target_f0_std 14) '(model_f0_mean 170) '(model_f0_std 34)))
  (Parameter.set 'Duration_Stretch stretch)
  (let ((utt (utt.synth (eval (list 'Utterance 'Text text))))) (utt.save.wave utt path 'riff)))
"""


def require_engines() -> None:
    """Stop with the one command that helps when a synthesiser or a festival voice is absent."""
    voices = Path("/usr/share/festival/voices")
    programs = all(shutil.which(name) for name in ("espeak-ng", "flite", "festival"))
    if not programs or not all(any(voices.glob(f"*/{v}")) for v in MEAN_F0 if "_" in v):
        print(f"A synthesiser is missing. Install all of them:\n  {APT}", file=sys.stderr)
        sys.exit(2)


def espeak(text: str, who: Speaker) -> Sound:
    """Speak with espeak-ng, whose pitch scale has 50 steps an octave."""
    pitch = min(99, max(0, round(50 + 50 * math.log2(who.pitch / who.tract))))
    command = [
        "espeak-ng",
        "-v",
        who.voice,
        "-s",
        str(round(160 * who.tempo / who.tract)),
        "-p",
        str(pitch),
        "--stdout",
        text,
    ]
    sound = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(
        sound[44:], "<i2"
    ) / 32768, 22_050  # piped, the header cannot know the length


def flite(text: str, who: Speaker, folder: Path) -> Sound:
    """Speak with flite (the pitch of its rms voice cannot be set)."""
    import soundfile

    path = folder / "flite.wav"
    subprocess.run(
        [
            "flite",
            "-voice",
            who.voice,
            "--setf",
            f"duration_stretch={who.tract / who.tempo:.3f}",
            "--setf",
            f"int_f0_target_mean={MEAN_F0[who.voice] * who.pitch / who.tract:.0f}",
            "-t",
            text,
            "-o",
            str(path),
        ],
        capture_output=True,
        check=True,
    )
    samples, rate = soundfile.read(path)
    return samples, rate


def festival(pieces: Sequence[tuple[str, Speaker]], folder: Path) -> list[Sound]:
    """Speak many pieces with one festival process: starting it costs more than speaking."""
    import soundfile

    script = folder / "say.scm"
    script.write_text(
        FESTIVAL
        + "\n".join(
            f"(say voice_{who.voice} {MEAN_F0[who.voice] * who.pitch / who.tract:.0f} {who.tract / who.tempo:.3f}"
            f' "{folder}/{i}.wav" "{text}")'
            for i, (text, who) in enumerate(pieces)
        )
    )
    subprocess.run(["festival", "-b", str(script)], capture_output=True, check=True)
    return [soundfile.read(folder / f"{i}.wav") for i in range(len(pieces))]


def speak(pieces: Sequence[tuple[str, Speaker]]) -> list[Wave]:
    """Speak each (text, speaker) dry at 16 kHz, peak 0.5, with 30 ms around the speech."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        batch = [i for i, (_, who) in enumerate(pieces) if who.engine == "festival"]
        sounds = dict(
            zip(batch, festival([pieces[i] for i in batch], folder) if batch else (), strict=True)
        )
        for i, (text, who) in enumerate(pieces):
            if i not in sounds:
                sounds[i] = (
                    espeak(text, who) if who.engine == "espeak-ng" else flite(text, who, folder)
                )
    return [trim(*sounds[i], who, text) for i, (text, who) in enumerate(pieces)]


def trim(samples: npt.NDArray[Any], rate: int, who: Speaker, text: str) -> Wave:
    """Resample to 16 kHz, shift the formants by the speaker's tract, cut the silence around, level
    the peak."""
    import soxr

    # Read at rate * tract and everything rises by tract; pitch and tempo were asked for as much
    # lower.
    wave = soxr.resample(samples.astype(np.float32), rate * who.tract, RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max(initial=0.0))
    if len(loud) < RATE // 200:
        raise RuntimeError(f"{who} says nothing for {text!r}")
    wave = wave[max(0, loud[0] - 480) : loud[-1] + 480]
    return np.asarray(0.5 / np.abs(wave).max() * wave, np.float32)


# ----------------------------------------------------------------------------------------------
# room and noise


def noise(kind: str, samples: int, rng: np.random.Generator) -> Wave:
    """Make noise of unit power: white, pink, hum (mains or a tone), cough (a few bursts)."""
    if kind == "hum":
        t = np.arange(samples) / RATE
        base = rng.choice([50, 60, 100, 120, rng.uniform(200, 2500)])
        wave = np.sum(
            [rng.uniform(0, 1) / k * np.sin(2 * np.pi * base * k * t) for k in (1, 2, 3, 5)], axis=0
        )
    else:
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        if kind != "white":
            spectrum *= 1 / np.sqrt(np.maximum(np.arange(len(spectrum)) * RATE / samples, 20))
        wave = np.fft.irfft(spectrum, samples)
    if kind == "cough":
        shape = np.zeros(samples)
        for start in rng.integers(0, samples, rng.integers(1, 5)):
            burst = np.exp(-np.arange(samples - start) / RATE / rng.uniform(0.02, 0.12))
            shape[start:] += burst * np.minimum(1, np.arange(samples - start) / 160)
        wave = wave * shape
    return np.asarray(wave / np.sqrt(np.mean(np.square(wave)) + 1e-12), np.float32)


def room(wave: Wave, rng: np.random.Generator) -> Wave:
    """Add the decaying tail of a room: 0.1-0.5 s to -60 dB, 3 to 16 dB under the direct sound."""
    from scipy.signal import fftconvolve

    decay = rng.uniform(0.1, 0.5)
    t = np.arange(int(decay * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay) * (t > rng.uniform(0.001, 0.01))
    tail *= rng.uniform(0.15, 0.7) / np.sqrt(np.square(tail).sum())
    tail[0] = 1
    return np.asarray(fftconvolve(wave, tail)[: len(wave)], np.float32)


def pause(rng: np.random.Generator, low: float, high: float) -> Wave:
    """Make low to high seconds of silence."""
    return np.zeros(int(rng.uniform(low, high) * RATE), np.float32)


def power(wave: Wave) -> float:
    """Root mean square, never zero."""
    return float(np.sqrt(np.mean(np.square(wave)) + 1e-12))


def line_up(pieces: Sequence[Wave], rng: np.random.Generator) -> Wave:
    """Put pieces after each other with 0-0.8 s between; some start after a second or more, some
    stop abruptly."""
    lead = rng.choice([0, 0.25, 2.5], p=[0.25, 0.6, 0.15])
    parts = [pause(rng, 1.0 if lead > 1 else 0, lead)]
    for piece in pieces:
        parts += [
            np.asarray(piece * 10 ** (rng.uniform(-6, 0) / 20), np.float32),
            pause(rng, 0, 0.8),
        ]
    parts[-1] = pause(rng, *((0.8, 2.0) if rng.random() < 0.12 else (0, 0.4)))
    return np.concatenate(parts)


def background(
    clip: Clip,
    pieces: Sequence[Wave],
    others: Sequence[Wave],
    samples: int,
    rng: np.random.Generator,
) -> Wave:
    """Make the noise behind a clip's pieces, as loud as it is to be; `others` are voices to
    babble."""
    kinds = (
        ("white", "pink", "pink", "babble", "hum")
        if pieces
        else ("white", "pink", "hum", "cough", "cough")
    )
    kind = str(rng.choice(kinds))
    if rng.random() >= {"rough": 0.7, "mild": 0.4, "clean": 0}[clip.sound] and pieces:
        return np.zeros(samples, np.float32)
    level = power(np.concatenate(pieces)) if pieces else 10 ** rng.uniform(-3, -1)
    if kind == "babble":
        behind = np.sum(
            [np.resize(others[i], samples) for i in rng.integers(0, len(others), 3)], axis=0
        )
        back = behind / power(behind)
    else:
        back = noise(kind, samples, rng)
    loudest = {"rough": 12 if kind == "babble" else 6}.get(clip.sound, 18)
    ratio = rng.uniform(loudest, 40) if pieces else 0
    return np.asarray(back * level * 10 ** (-ratio / 20), np.float32)


def record(clip: Clip, pieces: Sequence[Wave], others: Sequence[Wave]) -> Wave:
    """Put the pieces of a clip into silence, a room and noise, at a level of -26 to -1 dB."""
    rng = np.random.default_rng(clip.seed)
    wave = line_up(pieces, rng) if pieces else pause(rng, 0.5, 6)
    if pieces and rng.random() < {"rough": 0.35, "mild": 0.25, "clean": 0}[clip.sound]:
        wave = room(wave, rng)
    wave = wave + background(clip, pieces, others, len(wave), rng)
    hiss = rng.standard_normal(len(wave)) * 10 ** rng.uniform(
        -5, -3.7
    )  # no microphone is digitally silent
    mixed = wave + hiss
    gain = (
        10 ** (rng.uniform(-26, -1) / 20) / max(1e-3, float(np.abs(mixed).max())) if pieces else 1.0
    )
    return np.asarray(np.clip(mixed * gain, -1, 1), np.float32)


def render(clips: Sequence[Clip]) -> list[Wave]:
    """Speak and record clips; they also serve each other as babble, so the same list gives the same
    sound."""
    spoken = speak(
        [pair for clip in clips for pair in zip(clip.sentences, clip.speakers, strict=True)]
    )
    waves, at = [], 0
    for clip in clips:
        waves.append(record(clip, spoken[at : at + len(clip.sentences)], spoken))
        at += len(clip.sentences)
    return waves
