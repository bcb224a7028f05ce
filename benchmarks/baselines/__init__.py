"""Methods of other papers, implemented through the port for external methods."""

# Name in the benchmarks: location.
BASELINES = {
    "zero_shot": "benchmarks.baselines.zero_shot:ZeroShot",
    "cca": "benchmarks.baselines.cca:CCA",
    "csa": "benchmarks.baselines.cca:CSA",
    "ridge": "benchmarks.baselines.ridge:RidgeOntoFrozen",
    "gaussian_replay": "benchmarks.baselines.gaussian_replay:GaussianReplay",
    "replay_equal_bytes": "benchmarks.baselines.feature_replay:EqualBytes",
    "replay_all_rows": "benchmarks.baselines.feature_replay:FeatureReplay",
    "lwf": "benchmarks.baselines.lwf:LwF",
    "zscl": "benchmarks.baselines.lwf:ZSCL",
    "weight_average": "benchmarks.baselines.weight_average:WeightAverage",
    "weight_ema": "benchmarks.baselines.weight_average:WeightEMA",
    "gpm": "benchmarks.baselines.gpm:GPM",
    "adam_nscl": "benchmarks.baselines.adam_nscl:AdamNSCL",
    "anchor": "benchmarks.baselines.anchor:Anchor",
    "ewc": "benchmarks.baselines.ewc:EWC",
    "gem": "benchmarks.baselines.gem:GEM",
    "der": "benchmarks.baselines.der:DER",
    "derpp": "benchmarks.baselines.der:DERpp",
    "derpp_all_rows": "benchmarks.baselines.der:DERppAllRows",
    "co2l": "benchmarks.baselines.co2l:Co2L",
    "cila": "benchmarks.baselines.cila:CILA",
    "cflat": "benchmarks.baselines.cflat:CFlat",
    "paper_as_published": "benchmarks.baselines.paper_as_published:PaperAsPublished",
}
