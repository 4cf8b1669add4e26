"""Imported first by every part that uses Detectron2: says in one sentence what is missing, before a traceback does."""

from .env import require_detectron2

require_detectron2()
