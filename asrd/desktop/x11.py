"""The X server asked directly, for what xclip and xdotool cannot tell: a program of its own.

    lend    own both selections with the text on standard input; print `ready`, then a line for each
            fetch: `window` when the program that had the focus at the beginning fetched the text,
            `other` when another program did, and `lost` when a selection went to another program
    keys    print facts about the keyboard: `us` when xdotool types ASCII exactly, `caps` when Caps
            Lock is on, `window` when a window gets the keys
    caps    switch Caps Lock on

A clipboard manager fetches what is in the clipboard, too. X11 names the window for which a text is
fetched, and the number of a window names the client that made it. A program may have several
clients, so their processes count as well. Imports nothing of asrd, and no verb ever prints the
text. `clipboard` and `keyboard` start it, and end it when it takes too long: a stopped server never
answers.
"""

from __future__ import annotations

import sys

import xcffib
import xcffib.res
import xcffib.xkb
import xcffib.xproto

CORE_KEYBOARD = 0x100
LOCK_MODIFIER = 1 << xcffib.xproto.MapIndex.Lock
FIRST_KEYCODE = 8
SHIFT_KEYCODE, RETURN_KEYCODE = 50, 36
SHIFT_KEYSYM, RETURN_KEYSYM = 0xFFE1, 0xFF0D

US_ROWS = (
    (10, "1234567890-=", "!@#$%^&*()_+"),
    (24, "qwertyuiop[]", "QWERTYUIOP{}"),
    (38, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (51, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (65, " ", " "),
)
"""The US layout: first keycode of a row, its signs, and its signs with Shift."""


def _us_keys() -> dict[int, tuple[int, int]]:
    found = {RETURN_KEYCODE: (RETURN_KEYSYM, RETURN_KEYSYM)}
    for first, row, shifted_row in US_ROWS:
        signs = zip(row, shifted_row, strict=True)
        for keycode, (plain, shifted) in enumerate(signs, first):
            found[keycode] = (ord(plain), ord(shifted))
    return found


US_KEYS = _us_keys()
"""Keycode -> keysyms without and with Shift; the keysym of an ASCII sign is its code point."""

TEXT_TYPES = ("UTF8_STRING", "text/plain;charset=utf-8", "text/plain", "TEXT", "STRING")


class X11Server:
    """A connection to the X server of the environment."""

    def __init__(self) -> None:
        self.connection = xcffib.connect()
        self.core = self.connection.core
        self.setup = self.connection.get_setup()

    def atom(self, name: str) -> int:
        """Return the number of a name."""
        return int(self.core.InternAtom(False, len(name), name).reply().atom)

    def client(self, window: int) -> int:
        """Return the number that all resources of the window's client have in common."""
        return window & ~int(self.setup.resource_id_mask)

    def process(self, window: int) -> int:
        """Return the process that made a window, 0 where the server cannot tell."""
        wanted = xcffib.res.ClientIdMask.LocalClientPID
        try:
            asked = self.connection(xcffib.res.key)
            asked.QueryVersion(1, 2).reply()
            spec = xcffib.res.ClientIdSpec.synthetic(window, wanted)
            found = asked.QueryClientIds(1, [spec]).reply().ids
        except xcffib.XcffibException:
            return 0
        for one in found:
            if one.spec.mask == wanted:
                return int(one.value[0])
        return 0


class Owner:
    """Both selections, owned by a window of ours that is never shown.

    Raises on entry:
        RuntimeError: the server did not give us a selection.
    """

    def __init__(self, server: X11Server, text: bytes) -> None:
        self._server, self._core, self._text = server, server.core, text
        self._targets = server.atom("TARGETS")
        self._types = {server.atom(name): name for name in TEXT_TYPES}
        self._window = server.connection.generate_id()
        root = server.setup.roots[0]
        self._core.CreateWindow(
            0, self._window, root.root, 0, 0, 1, 1, 0,
            xcffib.xproto.WindowClass.InputOnly, root.root_visual, 0, [],
        )  # fmt: skip
        for name in ("CLIPBOARD", "PRIMARY"):
            selection = server.atom(name)
            self._core.SetSelectionOwner(self._window, selection, xcffib.xproto.Time.CurrentTime)
            if self._core.GetSelectionOwner(selection).reply().owner != self._window:
                raise RuntimeError(f"another program keeps {name}")
        focus = int(self._core.GetInputFocus().reply().focus)
        self._client = self._process = 0
        if focus not in (xcffib.xproto.InputFocus._None, xcffib.xproto.InputFocus.PointerRoot):
            self._client, self._process = server.client(focus), server.process(focus)

    def serve(self) -> None:
        """Answer whoever fetches, until the server goes away."""
        _print("ready")
        while True:
            event = self._server.connection.wait_for_event()
            if isinstance(event, xcffib.xproto.SelectionRequestEvent):
                if self._answer(event):
                    _print("window" if self._of_focus(event.requestor) else "other")
            elif isinstance(event, xcffib.xproto.SelectionClearEvent):
                _print("lost")

    def _of_focus(self, requestor: int) -> bool:
        if self._client and self._server.client(requestor) == self._client:
            return True
        return bool(self._process) and self._server.process(requestor) == self._process

    def _answer(self, event: xcffib.xproto.SelectionRequestEvent) -> bool:
        """Send the text, or the types in which it is there; return whether the text was sent."""
        kept = event.property or event.target  # clients of before 1993 name none
        content = self._content(event.target)
        try:
            if event.target == self._targets:
                types = [self._targets, *self._types]
                self._change(event.requestor, kept, xcffib.xproto.Atom.ATOM, 32, types)
            elif content is not None:
                self._change(event.requestor, kept, event.target, 8, content)
            else:
                kept = 0
            answer = xcffib.xproto.SelectionNotifyEvent.synthetic(
                event.time, event.requestor, event.selection, event.target, kept
            )
            self._core.SendEvent(False, event.requestor, 0, answer.pack(), is_checked=True).check()
        except xcffib.ProtocolException:  # the window is gone already
            return False
        return content is not None

    def _change(
        self, window: int, kept: int, type_: int, bits: int, content: bytes | list[int]
    ) -> None:
        replace = xcffib.xproto.PropMode.Replace
        self._core.ChangeProperty(
            replace, window, kept, type_, bits, len(content), content, is_checked=True
        ).check()  # fmt: skip

    def _content(self, type_: int) -> bytes | None:
        """Return the text in a type, None where that type cannot hold it."""
        if type_ not in self._types:
            return None
        if self._types[type_] != "STRING":
            return self._text
        try:
            return self._text.decode().encode("latin-1")
        except UnicodeEncodeError:
            return None


def types_us(columns: list[list[int]], shifts: list[int]) -> bool:
    """Return whether xdotool types ASCII exactly on a keyboard (pure).

    xdotool takes the first key that has a sign, and presses the modifiers of the level on which it
    is. That goes wrong beyond Shift, with dead keys and with a second layout. So each sign has to
    be where the US layout has it, and on no key before.

    Args:
        columns: keysyms of each keycode from `FIRST_KEYCODE` on, as the core protocol lists them:
            of the first layout without and with Shift, of the second layout likewise, then the
            rest.
        shifts: the keycodes that are Shift.
    """
    first_with: dict[int, int] = {}
    for keycode, keysyms in enumerate(columns, FIRST_KEYCODE):
        for keysym in keysyms:
            first_with.setdefault(keysym, keycode)
    for keycode, (plain, shifted) in US_KEYS.items():
        first, second = columns[keycode - FIRST_KEYCODE][:2], columns[keycode - FIRST_KEYCODE][2:4]
        if not _same(first, plain, shifted):
            return False
        if any(second) and not _same(second, plain, shifted):
            return False
        if first_with[plain] != keycode or first_with.get(shifted, keycode) != keycode:
            return False
    return SHIFT_KEYCODE in shifts and columns[SHIFT_KEYCODE - FIRST_KEYCODE][0] == SHIFT_KEYSYM


def _same(found: list[int], plain: int, shifted: int) -> bool:
    """Return whether a layout's two columns are these; a key without a second level leaves it 0."""
    if found[0] != plain:
        return False
    return found[1] == shifted or (plain == shifted and not found[1])


def keys(server: X11Server) -> str:
    """Return the facts about the keyboard."""
    first, last = server.setup.min_keycode, server.setup.max_keycode
    mapping = server.core.GetKeyboardMapping(first, last - first + 1).reply()
    width, keysyms = mapping.keysyms_per_keycode, list(mapping.keysyms)
    columns = [keysyms[start : start + width] for start in range(0, len(keysyms), width)]
    modifiers = server.core.GetModifierMapping().reply()
    shifts = list(modifiers.keycodes)[: modifiers.keycodes_per_modifier]
    state = _xkb(server).GetState(CORE_KEYBOARD).reply()
    facts = []
    if first == FIRST_KEYCODE and width > 1 and state.group == 0 and types_us(columns, shifts):
        facts.append("us")
    if state.lockedMods & LOCK_MODIFIER:
        facts.append("caps")
    if _has_reader(server):
        facts.append("window")
    return " ".join(facts)


def _has_reader(server: X11Server) -> bool:
    """Return whether keys reach a window: the one with the focus, or where there is none the one
    under the pointer."""
    focus = int(server.core.GetInputFocus().reply().focus)
    root = server.setup.roots[0].root
    if focus == xcffib.xproto.InputFocus._None:
        return False
    if focus in (xcffib.xproto.InputFocus.PointerRoot, root):
        return bool(server.core.QueryPointer(root).reply().child)
    return True


def caps(server: X11Server) -> None:
    """Switch Caps Lock on."""
    keyboard = _xkb(server)
    keyboard.LatchLockState(
        CORE_KEYBOARD, LOCK_MODIFIER, LOCK_MODIFIER, False, 0, 0, False, 0, is_checked=True
    ).check()  # fmt: skip


def _xkb(server: X11Server) -> xcffib.xkb.xkbExtension:
    keyboard = server.connection(xcffib.xkb.key)
    keyboard.UseExtension(1, 0).reply()
    return keyboard


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(verb: str) -> None:
    """Do one verb."""
    server = X11Server()
    if verb == "lend":
        Owner(server, sys.stdin.buffer.read()).serve()
    elif verb == "keys":
        _print(keys(server))
    else:
        caps(server)


if __name__ == "__main__":
    main(sys.argv[1])
