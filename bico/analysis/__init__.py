"""What two models have in common, and what a transfer or fine-tuning does to it.

    moments   centred second moments of matched rows, streamed; linear CKA
    pairs     CKA and cosine of two models' signals, before and after the alignment maps
    outputs   how much a model's layer outputs are like those of another set of weights
    drift     how far layer inputs move along fine-tuning
    maps      rank, spectrum and kept geometry of alignment maps
    plots     a plot function for each

Every analysis streams over batches, keeps sums and never the rows, and returns `Measurement`s.
"""

from bico.analysis.drift import input_drift
from bico.analysis.maps import describe_map, kept_geometry
from bico.analysis.moments import Moments, linear_cka
from bico.analysis.outputs import output_similarity
from bico.analysis.pairs import compare_signals
from bico.analysis.records import Curve, Measurement, curve

__all__ = [
    "Curve",
    "Measurement",
    "Moments",
    "compare_signals",
    "curve",
    "describe_map",
    "input_drift",
    "kept_geometry",
    "linear_cka",
    "output_similarity",
]
