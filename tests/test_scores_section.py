"""Scores as the report's cells and sentences have them."""

from vae.report.scores_section import in_words, spread


def test_seeds_have_a_mean_and_a_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == "2.000 ± 1"
    assert [spread(values) for values in ([], [None], [None, 0.5])] == ["-", "-", "0.5000"]


def test_scores_are_listed_in_words() -> None:
    assert in_words(["ssim"]) == "SSIM"
    assert in_words(["gfid_paper", "is_samples", "kl"]) == (
        "FID-1000 of samples, Inception score of samples and KL divergence"
    )
    assert in_words(["of a later version"]) == "of a later version"
