"""Phantom films: repeatable, shared out like the real set, and with the anatomy they claim."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from data_prep.phantom import FILMS, items, render


def number(key: str) -> int:
    return int(key.rpartition("/")[2])


@pytest.mark.parametrize("count", [16, 40, 5840])
def test_shares_are_those_of_the_real_set(count: int) -> None:
    found = items(count)
    assert len({key for key, *_ in found}) == count
    counts = Counter((split, label) for _, label, split, _ in found)
    num_test = counts["test", "NORMAL"] + counts["test", "PNEUMONIA"]
    assert num_test == round(count * 624 / 5840)
    if count == 5840:
        assert counts["test", "PNEUMONIA"] == 390
        assert counts["train", "PNEUMONIA"] == pytest.approx(3875, abs=3)


def test_patients_have_several_films_in_one_split_and_class() -> None:
    films, places = Counter[str](), defaultdict(set)
    for key, label, split, patient in items(500):
        films[patient] += 1
        places[patient].add((split, label))
        assert patient == f"phantom-{number(key) // FILMS}"
    assert all(len(found) == 1 for found in places.values())
    assert max(films.values()) > 2
    assert min(films.values()) == 1


@pytest.mark.parametrize("size_px", [16, 64, 256])
def test_film_is_repeatable_and_differs_by_number_and_seed(size_px: int) -> None:
    film = render(120, True, size_px)
    assert film.dtype == np.uint8
    assert film.shape == (size_px, size_px)
    assert np.array_equal(film, render(120, True, size_px))
    assert not np.array_equal(film, render(121, True, size_px))
    assert not np.array_equal(film, render(120, True, size_px, seed=1))


def test_chest_has_dark_lungs_a_bright_heart_and_air_around_the_body() -> None:
    film = np.mean([render(FILMS * patient, False, 128) for patient in range(10)], axis=0)
    right_lung, left_lung = film[50:75, 30:42].mean(), film[40:60, 86:98].mean()
    heart, spine, belly = film[66:82, 64:80].mean(), film[20:110, 62:66].mean(), film[105:115, 30:50].mean()
    air = film[30:100, :2].mean()
    assert air < min(right_lung, left_lung)
    assert max(right_lung, left_lung) + 40 < min(heart, spine, belly)


def test_pneumonia_is_the_same_chest_with_whiter_lungs() -> None:
    lungs = np.s_[20:88, 24:104]
    whiter = []
    for patient in range(12):
        healthy, ill = (render(FILMS * patient, sick, 128).astype(float) for sick in (False, True))
        assert np.corrcoef(healthy.ravel(), ill.ravel())[0, 1] > 0.9
        whiter.append((ill - healthy)[lungs].mean())
    assert min(whiter) > 0
    assert np.median(whiter) > 5


def test_films_of_one_patient_are_more_alike_than_those_of_two() -> None:
    def distance(one: int, other: int) -> float:
        films = [render(n, False, 64).astype(float) for n in (one, other)]
        return float(np.abs(films[0] - films[1]).mean())

    same = np.median([distance(FILMS * patient, FILMS * patient + 1) for patient in range(30)])
    two = np.median([distance(FILMS * patient, FILMS * patient + FILMS) for patient in range(30)])
    assert same < two
