"""python -m asrd"""

from .cli import main

raise SystemExit(main())
