"""Annotating a video, through a real encoder and decoder."""

from __future__ import annotations

import numpy as np
import pytest

from piip.errors import DataError
from piip.visualization.video import annotate_video

cv2 = pytest.importorskip("cv2", reason='not installed: pip install "piip[demo]"')

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]  # RGB


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for colour in COLOURS:
        writer.write(np.full((48, 64, 3), colour[::-1], np.uint8))
    writer.release()
    return path


def frames(path) -> list[np.ndarray]:
    reader = cv2.VideoCapture(str(path))
    found = []
    while (result := reader.read())[0]:
        found.append(result[1][:, :, ::-1])
    return found


def test_every_frame_is_annotated_in_rgb(clip, tmp_path, capsys):
    seen = []

    def annotate(frame, number):
        seen.append((number, frame[20, 20].tolist()))
        return np.ascontiguousarray(frame[::-1])

    assert annotate_video(clip, tmp_path / "out.mp4", annotate) == 3
    assert [number for number, _ in seen] == [0, 1, 2]
    for (_, colour), expected in zip(seen, COLOURS, strict=True):
        assert np.allclose(colour, expected, atol=12)
    written = frames(tmp_path / "out.mp4")
    assert [np.abs(f.mean((0, 1)) - c).max() < 12 for f, c in zip(written, COLOURS, strict=True)] == [True] * 3
    assert "3/3" in capsys.readouterr().err  # progress
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.avi", "out.mp4"]


def test_a_broken_video_is_named(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4'"):
        annotate_video(tmp_path / "clip.mp4", tmp_path / "out.mp4", lambda frame, number: frame)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_failure_leaves_nothing_behind(clip, tmp_path):
    def fail(frame, number):
        if number == 1:
            raise KeyboardInterrupt
        return frame

    with pytest.raises(KeyboardInterrupt):
        annotate_video(clip, tmp_path / "out.mp4", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.avi"]
