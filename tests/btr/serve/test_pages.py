"""What the pages are made of, without a browser."""

import json
import re

import pytest

from btr.serve.pages import PAGE, render_page
from btr.serve.service import PHASES

TEXTS = {"ink": "ground card", "quiet": "ground card", "accent": "ground card", "fault": "fault-ground"}
TEXTS |= {"on-accent": "accent", "mark-ink": "mark"}
EDGES = {"edge": "ground card", "accent": "ground card", "fault": "card"}  # of fields and buttons, and of the focus


def luminance(colour: str) -> float:
    """Return the relative luminance of "#rgb" or "#rrggbb", as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, 1 to 21."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21) and contrast("#777", "#fff") == pytest.approx(
        4.48, abs=0.005
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_page_stand_out(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#\w+)", light if scheme == "light" else dark))
    for least, pairs in ((4.5, TEXTS), (3.0, EDGES)):
        for colour, grounds in pairs.items():
            for ground in grounds.split():
                assert contrast(colours[colour], colours[ground]) >= least, (colour, ground)


def test_page_loads_nothing_from_elsewhere_and_its_policy_says_so() -> None:
    page, policy = render_page(["Who?"], "binary", locked=False)
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<(?:script|style|img|link)[^>]*(?:src|href)=\"(?!data:)", page) and "@import" not in page
    assert not re.search(r"<[^>]* style=", page)  # the policy would not let it


def test_page_knows_every_phase_that_the_server_times() -> None:
    (listed,) = re.findall(r"const PHASES = (\[.*?\]);", PAGE.read_text(encoding="utf-8"))
    assert set(PHASES) <= set(json.loads(listed))
