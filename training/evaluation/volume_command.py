"""The command line of training.evaluate for whole volumes; the evaluation is in volumes."""

from __future__ import annotations

import argparse
import json
from typing import Any

import ibis_agent.policy as policies
import ibis_agent.segmenter as segmenters
from ibis_agent.files import write_json
from ibis_agent.run.episode import Limits
from ibis_agent.run.settings import Settings

from training.evaluation.volumes import measure_lesions, measure_phantoms


def run_volumes(args: argparse.Namespace) -> None:
    """Evaluate, print, and write --json. Raises IbisError."""
    segmenter = segmenters.open(args.segmenter, args.segmenter_config, args.device)
    result: dict[str, Any] = {}
    policy = None
    if args.phantom_volumes is not None:
        if not args.oracle_only:
            policy = policies.open(args.policy, args.device, args.precision)
        limits = Settings(episode=Limits(max_turns=args.max_turns), follow=args.follow)
        result = measure_phantoms(args.phantom_volumes, args.seed, policy, segmenter, limits)
    if args.lesion_volumes is not None:
        result["lesions"] = measure_lesions(args.lesion_volumes, segmenter, args.follow)
    print(json.dumps(result, indent=1))
    if args.json is not None:
        pictures = f"{args.phantom_volumes or 0} phantoms, seed {args.seed}"
        models = {"policy": policy.identity if policy else None, "segmenter": segmenter.identity}
        write_json(args.json, {**result, "measured": {"volumes": pictures, **models}})
