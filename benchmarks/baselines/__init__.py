"""Methods of other papers, implemented through the port for external methods."""

# Name in the benchmarks: location.
BASELINES = {
    "cca": "benchmarks.baselines.cca:CCA",
    "csa": "benchmarks.baselines.cca:CSA",
    "cca_cl": "benchmarks.baselines.cca_cl:CCACL",
    "paper": "benchmarks.baselines.paper:Paper",
    "replay_equal_bytes": "benchmarks.baselines.feature_replay:EqualBytes",
    "replay_all_rows": "benchmarks.baselines.feature_replay:FeatureReplay",
}
