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


def seen(page, folder, script, *, width=1280, dark=False):
    """What a script finds in a page of report.html's folder once it is ready: the text of its value.

    The script runs in a copy of the page, at the end of it.
    """
    text = page.read_text()
    copy = page.with_name(f"seen-{width}.html")
    shown = f'Object.assign(document.createElement("pre"), {{ id: "found", textContent: String({script}) }})'
    copy.write_text(text.replace("</body>", f"<script>document.body.append({shown})</script></body>"))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000",
         *([DARK] if dark else []), "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=280, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    assert 'data-ready="yes"' in done.stdout, done.stderr[-2000:]
    return re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
