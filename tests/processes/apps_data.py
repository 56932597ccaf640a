"""An app that imports the data libraries at the top, as users do (group `nightly`), and a job of each."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress

import joblib
import numba
import numpy
import pandas
import polars
import pyarrow
import pyarrow.compute
import sklearn.cluster
import sklearn.ensemble
from PIL import Image, ImageFilter

from qml_mp import QmlApp, RetryPolicy

with suppress(ImportError):  # large, and not of the group
    import torch

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job(timeout=60)
def use_numpy() -> str:
    matrix = numpy.random.rand(400, 400)
    numpy.linalg.svd(matrix @ matrix.T)
    return "fine"


@app.job(timeout=60)
def use_pandas() -> str:
    frame = pandas.DataFrame({"key": [1, 2] * 50_000, "value": range(100_000)})
    assert frame.groupby("key")["value"].sum().sum() == sum(range(100_000))
    return "fine"


@app.job(timeout=60)
def use_pyarrow() -> str:
    table = pyarrow.table({"key": [1, 2] * 50_000, "value": list(range(100_000))})
    assert table.group_by("key").aggregate([("value", "sum")]).num_rows == 2
    return "fine"


@app.job(timeout=60)
def use_polars() -> str:
    frame = polars.DataFrame({"key": [1, 2] * 50_000, "value": range(100_000)})
    assert frame.lazy().group_by("key").agg(polars.col("value").sum()).collect().height == 2
    return "fine"


@app.job(timeout=60)
def use_sklearn() -> str:
    points = numpy.random.rand(2000, 8)
    sklearn.cluster.KMeans(4, n_init=1).fit(points)
    sklearn.ensemble.RandomForestClassifier(8, n_jobs=2).fit(points, points[:, 0] > 0.5)
    return "fine"


@app.job(timeout=60)
def use_joblib() -> str:
    assert joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-each) for each in range(4)) == [0, 1, 2, 3]
    return "fine"


@app.job(timeout=60)
def use_pool() -> str:
    with multiprocessing.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    return "fine"


@app.job(timeout=60)
def use_executor() -> str:
    with ProcessPoolExecutor(2) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    return "fine"


@numba.njit(parallel=True)  # type: ignore[untyped-decorator]
def _total(values: numpy.ndarray) -> float:
    total = 0.0
    for index in numba.prange(len(values)):
        total += values[index]
    return total


@app.job(timeout=60)
def use_numba() -> str:
    assert _total(numpy.ones(1000)) == 1000
    return "fine"


@app.job(timeout=60)
def use_pillow() -> str:
    Image.new("RGB", (500, 500)).filter(ImageFilter.GaussianBlur(3)).resize((100, 100))
    return "fine"


@app.job(timeout=60)
def use_torch() -> str:
    matrix = torch.rand(400, 400)
    assert torch.matmul(matrix, matrix).shape == (400, 400)
    return "fine"
