"""Guess from the histogram whether the grey values are those of a CT, for scans of unknown modality.

Below zero, a CT has a peak of air (or padding) or of fat; a resampled MR has a tail there, and phase or flow maps are
symmetric around zero.
"""

from __future__ import annotations

import numpy as np

UNNAMED = "modality unknown"
_MOST = 2**21  # number of voxels used, spread evenly over the scan


def likeness_words(likeness: tuple[bool, str]) -> str:
    """The result of `like_ct`, for display."""
    return f"{UNNAMED}, {'taken as CT' if likeness[0] else 'not taken as CT'}: {likeness[1]}"


def like_ct(voxels: np.ndarray) -> tuple[bool, str]:
    """(whether a window in Hounsfield units fits, the reason).

    voxels: (I, J, K) grey values; NaN and infinite values are ignored.
    """
    # One slice may be repeated (see engine.question.scan_of): count it only once.
    once = voxels[tuple(np.s_[:1] if stride == 0 else np.s_[:] for stride in voxels.strides)]
    steps = _steps(once.shape)
    values = once[tuple(np.s_[::step] for step in steps)].astype(np.float32).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return False, "no voxel contains a number"

    def part(low: float, high: float) -> float:
        return float(np.count_nonzero((values >= low) & (values < high))) / values.size

    air, bright = part(-np.inf, -150), part(1500, np.inf)
    if air >= 0.05 and _peak(values[values < -150]) >= 0.2 and bright <= 0.25 * air:
        return True, f"{air:.0%} as dark as air"
    fat, between = part(-110, -70), part(-50, -10)
    peaked = part(-150, -50) >= 0.02 and fat >= 0.7 * between
    mirrored = part(70, 110) > 0.5 * fat and float(values.max()) <= 1.5 * -float(values.min())
    if peaked and not mirrored and part(-150, 300) >= 0.6 and bright <= 0.05:
        return True, f"{part(-150, -50):.0%} like fat, most of the rest like soft tissue"
    below = part(-np.inf, -50)
    return (
        False,
        f"{below:.1%} below -50, not like air or fat" if below else "no air and no fat",
    )


def _peak(values: np.ndarray) -> float:
    """The fraction in the most frequent range of a hundred grey values."""
    bins = np.floor(np.clip(values, -32_768, 0) / 100).astype(int)
    return float(np.bincount(-bins).max()) / values.size


def _steps(shape: tuple[int, ...]) -> list[int]:
    steps = [1] * len(shape)
    while np.prod([-(-side // step) for side, step in zip(shape, steps, strict=True)]) > _MOST:
        widest = int(np.argmax([side // step for side, step in zip(shape, steps, strict=True)]))
        steps[widest] += 1
    return steps
