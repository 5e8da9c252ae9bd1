import json, time
from pathlib import Path
import pytest
from tests.integration.conftest import SMALL
from tests.mlflow_server import MlflowServer

def test_try(result, small_demo, runs, tmp_path, capsys):
    from pipelines.run import Options, run_pipeline
    from pipelines.promote import Request, promote, rollback
    t=time.time()
    server = MlflowServer(tmp_path/"server").start()
    print("server", time.time()-t)
    try:
        t=time.time()
        again = run_pipeline(Options(data=str(small_demo), overrides=SMALL, storage=str(runs), tracking_uri=server.uri))
        print("registered", again["model_uri"], [(s["name"], s["seconds"], s["reused"]) for s in again["stages"]], time.time()-t)
        gate = tmp_path/"gate.yaml"; gate.write_text("floors: {mAP: 0.01}\nno_worse: {mAP: 0.5}\nidentities: 2\nlatency_ms: 100000\nsize_mb: 1000\nmask_std: 0.0001\n")
        for kw in ({"records_only":True,"dry_run":True},{"dry_run":True},{},{}):
            t=time.time()
            r = promote(Request("dpmpp-demo", gate=str(gate), tracking_uri=server.uri, storage=str(runs), **kw))
            print(json.dumps(r, indent=1), time.time()-t)
        import mlflow
        c=mlflow.MlflowClient(server.uri)
        v=c.get_model_version("dpmpp-demo","1")
        print(v.description); print(v.tags); 
        print([ (x.version,x.tags,x.source) for x in c.search_model_versions("name='dpmpp-demo.promotions'")])
        print(mlflow.artifacts.load_text(f"runs:/{r.get('run_id') or v.tags['dpmpp.gate.run']}/verdict.md"))
    finally:
        server.stop()
