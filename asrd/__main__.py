"""python -m asrd"""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current folder, whose files are data; without -P it is first

from asrd.cli.main import main

raise SystemExit(main())
