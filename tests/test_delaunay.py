import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay, QhullError

from instantgi.points import triangulate


def lattice_points(num: int, side: int, seed: int) -> torch.Tensor:
    """Distinct random multiples of 0.5 in a square, shuffled."""
    rng = np.random.default_rng(seed)
    lattice = np.unique(rng.integers(0, side, (num, 2)), axis=0)
    return torch.from_numpy(rng.permutation(lattice)).float() / 2


def doubled_areas(lattice: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (lattice[triangles[:, q]] for q in range(3))
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    return ux * vy - uy * vx


def in_circle(a, b, c, d) -> np.ndarray:
    """Positive if d is inside the circle through a, b, c; exact for int64 differences to 2**14."""
    (ax, ay), (bx, by), (cx, cy) = ((p - d).T for p in (a, b, c))
    return (
        (ax * ax + ay * ay) * (bx * cy - by * cx)
        + (bx * bx + by * by) * (cx * ay - cy * ax)
        + (cx * cx + cy * cy) * (ax * by - ay * bx)
    )


def check_triangulation(points: torch.Tensor, dtype: type = np.int64) -> np.ndarray:
    """Asserts all that defines the result; dtype=object for coordinates beyond 2**13."""
    triangles, neighbors = (tensor.numpy() for tensor in triangulate(points))
    lattice = (2 * points.double()).numpy().astype(np.int64).astype(dtype)
    assert (doubled_areas(lattice, triangles) > 0).all()
    assert (triangles[:, 0] == triangles.min(axis=1)).all()
    assert [tuple(t) for t in triangles] == sorted({tuple(t) for t in triangles})
    check_neighbors(triangles, neighbors)
    check_circles(lattice, triangles, neighbors)
    hull = int((neighbors == np.arange(len(triangles))[:, None]).sum())
    if len(triangles):
        assert len(triangles) == 2 * len(points) - 2 - hull  # Euler, every point used
        assert len(np.unique(triangles)) == len(points)
    return triangles


def check_neighbors(triangles, neighbors):
    for q in range(3):
        t = np.nonzero(neighbors[:, q] != np.arange(len(triangles)))[0]
        edge = np.sort(np.delete(triangles[t], q, axis=1), axis=1)
        across = neighbors[t, q]
        back = neighbors[across] == t[:, None]  # exactly one corner over there faces t
        assert (back.sum(axis=1) == 1).all()
        other = np.sort(triangles[across][~back].reshape(-1, 2), axis=1)
        assert (edge == other).all()


def check_circles(lattice, triangles, neighbors):
    """Locally Delaunay at every edge, which makes all circumcircles empty; ties as documented."""
    for q in range(3):
        t = np.nonzero(neighbors[:, q] != np.arange(len(triangles)))[0]
        across = neighbors[t, q]
        facing = np.argmax(neighbors[across] == t[:, None], axis=1)
        d = triangles[across, facing]
        a, b, c = (triangles[t, (q + shift) % 3] for shift in range(3))
        determinants = in_circle(*(lattice[i] for i in (a, b, c, d)))
        assert (determinants <= 0).all()
        for quad in np.stack([a, b, c, d], axis=1)[determinants == 0]:
            first = min(quad, key=lambda i: (lattice[i][1], lattice[i][0]))
            assert first in quad[1:3]  # the shared edge starts at the first point in reading order


def check_against_scipy(points: torch.Tensor, triangles: np.ndarray):
    lattice = (2 * points).numpy().astype(np.int64)
    try:
        rival = Delaunay(lattice)
    except QhullError:
        assert len(triangles) == 0
        return
    area = np.abs(doubled_areas(lattice, rival.simplices)).sum()
    assert doubled_areas(lattice, triangles).sum() == area
    if len(rival.coplanar) == 0:
        assert len(triangles) == len(rival.simplices)


@pytest.mark.parametrize("side", [2, 3, 4, 6, 10, 30])
def test_small_lattices_match_scipy(side):
    for seed in range(200):
        points = lattice_points(1 + seed % 40, side, seed)
        check_against_scipy(points, check_triangulation(points))


def test_all_subsets_of_a_small_grid_are_triangulated():
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)).float()
    for bits in itertools.product([False, True], repeat=9):
        points = grid[torch.tensor(bits)]
        check_against_scipy_or_empty(points)


def check_against_scipy_or_empty(points: torch.Tensor):
    triangles = check_triangulation(points)
    if len(points) < 3:
        assert len(triangles) == 0
    else:
        check_against_scipy(points, triangles)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 2), max_size=40, unique=True))
def test_any_set_of_points_is_triangulated(lattice):
    check_against_scipy_or_empty(torch.tensor(lattice).reshape(-1, 2).float() / 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.integers(-(2**21), 2**21)] * 2), max_size=25, unique=True))
def test_the_largest_coordinates_stay_exact(lattice):
    check_triangulation(torch.tensor(lattice).reshape(-1, 2).float() / 2, dtype=object)


def test_huge_circles_stay_exact():
    # one circle of radius 2**20 through 20 lattice points, and the same with one point moved inward
    corners = [(2**20, 0), (0, 2**20)]
    for a, b in [(3, 4), (4, 3), (5, 12)]:
        hypotenuse = round((a * a + b * b) ** 0.5)
        scale = 2**20 // (5 * 13) // hypotenuse * 5 * 13
        corners += [(a * scale, b * scale)]
    points = {(x * sx, y * sy) for x, y in corners for sx in (1, -1) for sy in (1, -1)}
    check_triangulation(torch.tensor(sorted(points)).float(), dtype=object)


@pytest.mark.parametrize(
    "name", ["row", "column", "diagonal", "steep", "cross", "circle", "two lines"]
)
def test_degenerate_shapes_are_triangulated(name):
    t = torch.arange(-30, 31)
    zero = torch.zeros_like(t)
    shapes = {
        "row": torch.stack([t, zero], -1),
        "column": torch.stack([zero, t], -1),
        "diagonal": torch.stack([t, -t], -1),
        "steep": torch.stack([t, 7 * t], -1),
        "cross": torch.cat([torch.stack([t, zero], -1), torch.stack([zero, t], -1)]).unique(dim=0),
        "circle": torch.tensor(
            [(x, y) for x in range(-65, 66) for y in range(-65, 66) if x * x + y * y == 65 * 65]
        ),
        "two lines": torch.cat([torch.stack([t, zero], -1), torch.stack([3 * t, zero + 1], -1)]),
    }
    points = shapes[name].float()
    triangles = check_triangulation(points)
    check_against_scipy(points, triangles)
    assert (len(triangles) == 0) == (name in ("row", "column", "diagonal", "steep"))


@pytest.mark.parametrize("side", [170, 400, 20000])
def test_large_lattices_match_scipy(side):
    points = lattice_points(20000, side, seed=side)
    triangles, neighbors = (tensor.numpy() for tensor in triangulate(points))
    lattice = (2 * points).numpy().astype(np.int64)
    check_neighbors(triangles, neighbors)
    check_circles(lattice, triangles, neighbors)
    check_against_scipy(points, triangles)


def test_full_grid_is_two_triangles_per_square():
    points = torch.cartesian_prod(torch.arange(70), torch.arange(90)).float()
    triangles = check_triangulation(points)
    assert len(triangles) == 2 * 69 * 89
    assert (doubled_areas((2 * points).long().numpy(), triangles) == 4).all()


def test_triangles_depend_on_the_points_and_not_on_their_order():
    points = lattice_points(3000, 80, seed=0)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))

    def as_set(triangles, names):
        return {tuple(sorted(names[t].tolist())) for t in triangles}

    expected = as_set(triangulate(points)[0], torch.arange(len(points)))
    assert as_set(triangulate(points[order])[0], order) == expected


def test_result_is_independent_of_threads():
    points = lattice_points(30000, 300, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = triangulate(points)
        for num_threads in (2, 3):
            torch.set_num_threads(num_threads)
            triangles, neighbors = triangulate(points)
            assert torch.equal(triangles, expected[0]) and torch.equal(neighbors, expected[1])
    finally:
        torch.set_num_threads(before)


def test_shifted_points_have_the_same_triangles():
    points = lattice_points(500, 40, seed=2)
    shifted = triangulate(points + torch.tensor([2.0**20 - 20, -(2.0**20)]))
    assert torch.equal(shifted[0], triangulate(points)[0])


def test_neighbors_of_a_square():
    # a fan around the first point in reading order: the diagonal starts at (0, 0)
    points = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    triangles, neighbors = triangulate(points)
    assert triangles.tolist() == [[0, 1, 2], [0, 3, 1]]
    assert neighbors.tolist() == [[0, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("num", [0, 1, 2])
def test_fewer_than_three_points_have_no_triangles(num):
    triangles, neighbors = triangulate(torch.arange(2 * num).reshape(num, 2).float())
    assert triangles.shape == neighbors.shape == (0, 3)


def test_equal_points_are_refused():
    points = torch.tensor([[0.0, 0.0], [3.0, 1.5], [2.0, 2.0], [3.0, 1.5]])
    with pytest.raises(ValueError, match=r"distinct, but 1 and 3 are both at \(3, 1.5\)"):
        triangulate(points)


@pytest.mark.parametrize("bad", [0.25, float("nan"), float("inf"), 2.0**20 + 1, 1e-40])
def test_points_off_the_lattice_are_refused(bad):
    with pytest.raises(ValueError, match="points must be multiples of 0.5 pixels up to 1048576"):
        triangulate(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, bad]]))


def test_triangulate_is_an_operator():
    lattice = (2 * lattice_points(50, 20, seed=3)).int()
    torch.library.opcheck(torch.ops.instantgi.triangulate.default, (lattice,))
