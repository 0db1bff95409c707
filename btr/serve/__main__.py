"""Run `python -m btr.serve`."""

from btr.serve import main

raise SystemExit(main())
