"""Predict a cohort from Python: `predict_from_python.py ARTIFACT SCANS TABLE`."""

import sys

import hyperfusion_rt

artifact, scans, table = sys.argv[1:]
predictor = hyperfusion_rt.load(artifact)  # opened once, used as often as you like
print("engine:", predictor.engine)
print("classes, or unit:", predictor.manifest.classes or predictor.manifest.unit)
for p in predictor.predict(scans, table):
    if p.status == "ok":
        print(p.subject, [round(value, 3) for value in p.values])
    else:
        print(p.subject, p.status, p.reason)  # the run goes on
