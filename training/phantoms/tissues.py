"""The structures of training pictures, and their HU in contrast phases."""

from __future__ import annotations

STRUCTURES = ("liver", "spleen", "left kidney", "right kidney", "aorta", "spine", "stomach", "lesion")
EXTRAS = ("gallbladder", "inferior vena cava", "pancreas", "bowel", "psoas", "back muscle", "lung")
NAMES = (*STRUCTURES, *EXTRAS)  # the bits of a stored picture, in this order

# Mean HU and standard deviation between patients: native, arterial, portal venous, delayed.
PHASES = {
    "native": {"liver": (52, 10), "spleen": (42, 7), "kidney": (28, 8), "aorta": (40, 6), "vein": (38, 6)},
    "arterial": {
        "liver": (70, 10),
        "spleen": (115, 20),
        "kidney": (130, 30),
        "aorta": (260, 50),
        "vein": (90, 30),
    },
    "portal": {
        "liver": (108, 13),
        "spleen": (118, 14),
        "kidney": (165, 25),
        "aorta": (150, 20),
        "vein": (145, 20),
    },
    "delayed": {
        "liver": (85, 10),
        "spleen": (85, 10),
        "kidney": (120, 25),
        "aorta": (95, 12),
        "vein": (95, 12),
    },
}
PHASE_ODDS = {"native": 0.4, "arterial": 0.12, "portal": 0.36, "delayed": 0.12}
