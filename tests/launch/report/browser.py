"""A page in headless Chromium, at a width and in a colour scheme."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome: install one to try pages in it")
DARK = "--blink-settings=preferredColorScheme=0"


def dumped(address, folder, *, width=1280, dark=False, milliseconds=3000):
    """The document at an address as it is after so much time of the page's own, which stands still while it loads."""
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--dump-dom",
         f"--virtual-time-budget={milliseconds}", *([DARK] if dark else []), address],
        capture_output=True, text=True, timeout=280, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip


def shown(script):
    """A script for the end of a page that leaves the text of its value where `found` finds it."""
    one = f'Object.assign(document.createElement("pre"), {{ id: "found", textContent: String({script}) }})'
    return f"<script>document.body.append({one})</script>"


def found(done):
    """What `shown` left in a dumped page that was ready."""
    assert 'data-ready="yes"' in done.stdout, done.stderr[-2000:]
    return re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]


def seen(page, folder, script, *, width=1280, dark=False):
    """What a script finds in a page of report.html's folder once it is ready: the text of its value.

    The script runs in a copy of the page, at the end of it.
    """
    copy = page.with_name(f"seen-{width}.html")
    copy.write_text(page.read_text().replace("</body>", f"{shown(script)}</body>"))
    return found(dumped(copy.as_uri(), folder, width=width, dark=dark))
