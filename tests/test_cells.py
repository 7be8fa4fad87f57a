"""Numbers and names as the report's cells and sentences have them."""

from __future__ import annotations

from vae.report.cells import fixed, in_words, number, spread


def test_numbers_have_four_digits_or_are_whole() -> None:
    assert [number(value) for value in (None, 0.44671, 35912.4, 24.0, 0.0)] == [
        "-",
        "0.4467",
        "35,912",
        "24.00",
        "0.000",
    ]
    assert [fixed(value, 1) for value in (None, 2.25, 1234.56)] == ["-", "2.2", "1,234.6"]


def test_seeds_have_a_mean_and_a_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1"
    assert [spread(values) for values in ([], [None], [None, 0.5])] == ["-", "-", "0.5000"]


def test_scores_are_listed_in_words() -> None:
    assert in_words(["ssim"]) == "SSIM"
    assert in_words(["gfid_paper", "is_samples", "kl"]) == (
        "FID of samples, Inception score of samples and KL divergence"
    )
    assert in_words(["of a later version"]) == "of a later version"
