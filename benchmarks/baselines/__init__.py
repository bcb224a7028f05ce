"""Methods of other papers, implemented through the port for external methods."""

# Name in the benchmarks: location.
BASELINES = {
    "anchor": "benchmarks.baselines.anchor:Anchor",
    "ewc": "benchmarks.baselines.ewc:EWC",
    "gem": "benchmarks.baselines.gem:GEM",
    "der": "benchmarks.baselines.der:DER",
    "derpp": "benchmarks.baselines.derpp:DERpp",
    "co2l": "benchmarks.baselines.co2l:Co2L",
    "cila": "benchmarks.baselines.cila:CILA",
    "cflat": "benchmarks.baselines.cflat:CFlat",
}
