"""Rows in any kind of array: the same fit, results of the same kind in the same place, and no copies on the way."""

import pickle
import warnings
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning

from fastclust import DPGMM, BayesianGaussianMixture
from fastclust.arrays import host, receive
from fastclust.blocks import Blocks

CPU = torch.device("cpu")
X = relu_features(400, 5).astype(np.float32)
KINDS = ("full", "tied", "diag", "spherical")


class Capsule:
    """An array of a library that nobody knows: it has `__dlpack__` and nothing else."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows.copy())

    def __dlpack__(self, **options: object) -> object:
        return self.rows.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.rows.__dlpack_device__()


def from_dlpack(tensor: torch.Tensor) -> Capsule:
    """What the library of Capsule, this module, makes of a tensor."""
    made = Capsule(np.zeros(1))
    made.rows = tensor
    return made


def read_only(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows.flags.writeable = False
    return rows


def mapped(rows: np.ndarray, folder) -> np.ndarray:
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode="r")


def stored(rows: np.ndarray, folder) -> h5py.Dataset:
    file = h5py.File(folder / "rows.h5", "w")
    file["rows"] = rows
    return file["rows"]


def of(library: str) -> Any:
    """Return a library that a card's machine may lack; where it is not installed, the test is skipped."""
    return pytest.importorskip(library)


INPUTS = {  # how the rows are held: (the array, the type of results, None for the array's own)
    "torch": (lambda rows, folder: torch.from_numpy(rows), torch.Tensor),
    "torch with a gradient": (lambda rows, folder: torch.from_numpy(rows.copy()).requires_grad_(), torch.Tensor),
    "torch columns first": (lambda rows, folder: torch.from_numpy(rows.T.copy()).T, torch.Tensor),
    "array API": (lambda rows, folder: of("array_api_strict").asarray(rows), None),
    "a capsule": (lambda rows, folder: Capsule(rows), Capsule),
    "h5py": (stored, np.ndarray),
    "parts": (lambda rows, folder: [rows[:100], rows[100:101], rows[101:]], np.ndarray),
    "parts of torch": (lambda rows, folder: [torch.from_numpy(rows[:100]), torch.from_numpy(rows[100:])], torch.Tensor),
    "pandas": (lambda rows, folder: of("pandas").DataFrame(rows, columns=list("abcde")), np.ndarray),
    "polars": (lambda rows, folder: of("polars").DataFrame(rows, schema=list("abcde")), np.ndarray),
    "lists": (lambda rows, folder: rows.tolist(), np.ndarray),
    "memory map": (mapped, np.ndarray),
    "read only": (lambda rows, folder: read_only(rows), np.ndarray),
    "big endian": (lambda rows, folder: rows.astype(">f4"), np.ndarray),
    "columns first": (lambda rows, folder: np.asfortranarray(rows), np.ndarray),
    "backwards": (lambda rows, folder: rows[::-1].copy()[::-1], np.ndarray),
    "every second": (lambda rows, folder: np.repeat(rows, 2, axis=0)[::2], np.ndarray),
    "long double": (lambda rows, folder: rows.astype(np.longdouble), np.ndarray),
    "objects": (lambda rows, folder: rows.astype(object), np.ndarray),
}


def quietly(estimator, rows, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(rows, **more)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", [DPGMM, BayesianGaussianMixture])
def test_every_kind_of_array_gives_one_fit_and_results_of_its_kind(kind, name, tmp_path):
    parameters = {"n_components": 4, "init_params": "random_from_data", "random_state": 0, "max_iter": 8}
    parameters |= {"covariance_type": "diag", "dtype": "float64"}
    expected = quietly(kind(**parameters), X)
    make, result_type = INPUTS[name]
    rows = make(X, tmp_path)
    result_type = result_type or type(rows)
    model = quietly(kind(**parameters), rows)
    at_once, plainly = (kind(**parameters | {"tol": 10.0}) for _ in range(2))
    for result, wanted in (
        (at_once.fit_predict(rows), plainly.fit_predict(X)),
        (model.predict(rows), expected.predict(X)),
        (model.predict_proba(rows), expected.predict_proba(X)),
        (model.score_samples(rows), expected.score_samples(X)),
    ):
        assert type(result) is result_type
        np.testing.assert_allclose(host(result), wanted, rtol=1e-8, atol=1e-12)
    assert model.score(rows) == pytest.approx(expected.score(X), rel=1e-10)
    follows = kind is BayesianGaussianMixture
    for attribute in ("means_", "covariances_", "weights_", "precisions_", "mean_prior_", "degrees_of_freedom_"):
        value = getattr(model, attribute)
        assert type(value) is (result_type if follows else np.ndarray), attribute
        near = 1e-6 if attribute == "mean_prior_" else 1e-9  # of float32 rows, scikit-learn's is a float32 array
        np.testing.assert_allclose(host(value), getattr(expected, attribute), rtol=near, atol=1e-12, err_msg=attribute)
    again = pickle.loads(pickle.dumps(model))  # wherever it was fitted, it can be read where there is only NumPy
    assert type(again.means_) is np.ndarray
    np.testing.assert_array_equal(host(again.predict(rows)), expected.predict(X))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_of_tensors_goes_on_and_is_pruned_and_sampled_from_and_saved(kind, tmp_path):
    import fastclust

    rows = torch.from_numpy(X).double()
    parameters = {"n_components": 8, "covariance_type": kind, "random_state": 0, "tol": 1e-6, "init_params": "random"}
    model, plain = (BayesianGaussianMixture(max_iter=4, warm_start=True, **parameters) for _ in range(2))
    for _ in range(2):
        quietly(model, rows)
        quietly(plain, X.astype(np.float64))
    np.testing.assert_allclose(host(model.means_), plain.means_, rtol=1e-9, atol=1e-12)
    for drawn, expected in zip(model.sample(7), plain.sample(7), strict=True):
        assert isinstance(drawn, torch.Tensor)
        np.testing.assert_allclose(drawn, expected, rtol=1e-9, atol=1e-12)
    model.save(tmp_path / "model.h5")
    loaded = fastclust.load(tmp_path / "model.h5")
    assert type(loaded) is BayesianGaussianMixture
    assert isinstance(loaded.means_, np.ndarray)
    assert torch.equal(loaded.predict(rows), model.predict(rows))
    assert isinstance(model.prune().weights_, torch.Tensor)
    assert torch.equal(loaded.prune().predict(rows), model.predict(rows))


NO_COPY = {
    "C order": X,
    "columns first": np.asfortranarray(X),
    "every second": X[::2],
    "some columns": X[:, 1:3],
    "float64": X.astype(np.float64),
    "float16": X.astype(np.float16),
    "read only": read_only(X),
}


@pytest.mark.parametrize("name", NO_COPY)
def test_the_kernels_look_at_the_memory_that_came(name):
    rows = NO_COPY[name]
    for model in (DPGMM(2, max_iter=2), BayesianGaussianMixture(n_components=2, max_iter=2)):
        quietly(model, rows)
        _, seen = model._rows_of(rows)
        (block,) = seen.blocks
        assert block.data_ptr() == rows.ctypes.data
        assert block.stride() == tuple(stride // rows.itemsize for stride in rows.strides)


def test_maps_tensors_and_exchanged_arrays_are_not_copied_either(tmp_path):
    rows = mapped(X, tmp_path)
    tensor, capsule, strict = torch.from_numpy(X), Capsule(X), of("array_api_strict").asarray(X)
    frame = of("pandas").DataFrame(X)
    for given, address in (
        (rows, rows.ctypes.data),
        (tensor, tensor.data_ptr()),
        (tensor.half(), None),
        (capsule, capsule.rows.data_ptr()),
        (strict, np.asarray(strict).ctypes.data),
        (frame, frame.to_numpy().ctypes.data),
    ):
        model = DPGMM(2, max_iter=1)
        quietly(model, given)
        _, seen = model._rows_of(given)
        (block,) = seen.blocks
        assert block.data_ptr() == (given.data_ptr() if address is None else address), type(given)


def test_results_are_handed_over_without_a_copy():
    result = torch.arange(5)
    assert receive(Capsule(X)).like(result).rows.data_ptr() == result.data_ptr()
    assert receive(torch.zeros(2, 2)).like(result).data_ptr() == result.data_ptr()
    assert receive(X).like(result).ctypes.data == result.data_ptr()


def test_integers_come_in_pieces_as_float64():
    rows = (X * 100).astype(np.int32)
    blocks = list(Blocks(rows, CPU))
    assert {block.dtype for block in blocks} == {torch.float64}
    assert BayesianGaussianMixture(n_components=2).fit(rows).dtype is None


def test_the_arithmetic_is_that_of_the_rows():
    for dtype, expected in (
        (np.float64, torch.float64),
        (np.int64, torch.float64),
        (np.float32, torch.float32),
        (np.float16, torch.float32),
        (">f4", torch.float32),
    ):
        model = quietly(BayesianGaussianMixture(n_components=2, max_iter=2), X.astype(dtype))
        assert model._rows_of(X.astype(dtype))[1].dtype == expected
    model = quietly(BayesianGaussianMixture(n_components=2, max_iter=2, dtype="float64"), X)
    assert model._rows_of(X)[1].dtype == torch.float64
    assert model._rows_of(torch.from_numpy(X).bfloat16())[1].dtype == torch.float64


def test_the_columns_of_a_frame_can_have_any_names():
    frame = of("pandas").DataFrame(X, columns=["bounds", "id", "shape", "device", "strides"])
    model = quietly(DPGMM(2, random_state=0), X)
    for rows in (frame, [frame[:150], frame[150:]]):
        np.testing.assert_allclose(quietly(DPGMM(2, random_state=0), rows).means_, model.means_, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_field_of_packed_records_is_rows(dtype):
    records = np.zeros(len(X), dtype=[("label", "i1"), ("features", dtype, (5,))])
    records["features"] = X
    found, expected = (quietly(DPGMM(2, random_state=0), rows) for rows in (records["features"], X.astype(dtype)))
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-5)
    assert (found.predict(records["features"][::-1]) == found.predict(X.astype(dtype))[::-1]).all()


def test_weights_that_must_not_be_written_to_are_read_without_a_warning():
    """As a column of pandas 3 is."""
    weights = np.arange(400.0)
    weights.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        for model in (DPGMM(2, random_state=0), DPGMM(2, random_state=0)):
            model.fit(X, sample_weight=weights).partial_fit(X, sample_weight=of("pandas").Series(weights))


def test_a_column_name_that_is_missing_is_told():
    frame = of("pandas").DataFrame(blobs(50, 3), columns=["a", "b", "c"])
    model = quietly(DPGMM(2), frame)
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(frame.to_numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [DPGMM, BayesianGaussianMixture])
def test_on_a_gpu_rows_stay_there(kind):
    cupy = pytest.importorskip("cupy")
    rows = torch.from_numpy(X).cuda()
    parameters = {"n_components": 4, "init_params": "random_from_data", "random_state": 0, "max_iter": 8}
    for given, result_type in ((rows, torch.Tensor), (cupy.asarray(X), cupy.ndarray)):
        model = quietly(kind(**parameters), given)
        assert model.device_.startswith("cuda")
        assert type(model.predict(given)) is result_type
        _, seen = model._rows_of(given)
        (block,) = seen.blocks
        assert block.data_ptr() == (given.data_ptr() if given is rows else given.data.ptr)
        assert pickle.loads(pickle.dumps(model)).predict(X).shape == (400,)
