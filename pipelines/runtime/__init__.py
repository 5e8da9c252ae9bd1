"""What every stage runs on: `Run`, `Stage`, `Storage`, `Tracking`, and the resource `Plan`.

Also progress bars, gauges for Prometheus, work in blocks on Ray Data, and Ray Tune's `Tuner`.
"""
