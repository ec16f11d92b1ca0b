"""METEOR and SPICE, which exist in Java only: through pycocoevalcap, an optional extra (`java-metrics`).

Owns the calls and what to do when something is missing. Nothing is imported or started before it is asked for.
"""

import shutil
import subprocess
from collections.abc import Sequence

from pipeline.errors import DependencyError, installing
from pipeline.scoring.ngrams import Words


def java_scores(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> dict[str, float]:
    """METEOR and SPICE, x 100.

    Args:
        hypotheses: N captions, as words.
        references: of each of them, at least one.

    Raises:
        DependencyError: the extra or Java is missing, or Java failed (SPICE fetches its models once, and wants 8 GB).
    """
    try:
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice.spice import Spice
    except ImportError as error:
        raise DependencyError(
            "METEOR and SPICE need pycocoevalcap, which is not installed. Set "
            f"evaluate.java_scores: false, or install it: {installing('java-metrics')}"
        ) from error
    if shutil.which("java") is None:
        raise DependencyError(
            'METEOR and SPICE need Java 8 or later, and there is no "java" on the PATH. Install one (apt install '
            "default-jre-headless), or set evaluate.java_scores: false."
        )
    said = {number: [" ".join(words)] for number, words in enumerate(hypotheses)}
    others = {number: [" ".join(words) for words in image] for number, image in enumerate(references)}
    try:
        meteor, _ = Meteor().compute_score(others, said)
        spice, _ = Spice().compute_score(others, said)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise DependencyError(
            f"METEOR or SPICE could not be computed: {error}. SPICE downloads its models once (network needed) and "
            "takes up to 8 GB of memory; set evaluate.java_scores: false to go on without both."
        ) from error
    return {"meteor": 100 * float(meteor), "spice": 100 * float(spice)}
