"""As sitecustomize, for tests: what Python does with files of a folder takes a moment longer, as on a slow shared
filesystem. SLOW_FOLDER names the folder, SLOW_COUNT a file that gets a byte for each delay."""

import os
import sys
import time

FOLDER, COUNT = os.environ.get("SLOW_FOLDER"), os.environ.get("SLOW_COUNT")
SLOW = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "sqlite3.connect"}


def delay(event, given):
    if event in SLOW and FOLDER in str(given[0]):
        time.sleep(0.05)
        os.write(count, b".")


if FOLDER and COUNT:
    count = os.open(COUNT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(delay)
