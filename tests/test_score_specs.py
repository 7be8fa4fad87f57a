"""The table of scores: what the report, status and sentences call each one."""

from pathlib import Path

from vae.scoring.score_cards import read_scores
from vae.scoring.score_specs import SPEC, SPECS, Better, Section


def test_every_score_has_a_specification_and_its_unit(scored_study: Path) -> None:
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    assert set(SPEC) == set(scores.scores)
    for key, score in scores.scores.items():
        assert score.unit == (SPEC[key].unit if score.value is not None else ""), key


def test_the_report_status_and_sentences_have_names_of_their_own() -> None:
    shown = [(spec.head, spec.short_head, spec.in_words) for spec in SPECS if spec.is_in_status]
    assert shown == [
        ("FID-1000, reconstructions", "FID-1000\nreconstr.", "FID-1000 of reconstructions"),
        ("FID-1000, samples", "FID-1000\nsamples", "FID-1000 of samples"),
        ("IS, reconstructions", "IS\nreconstr.", "Inception score of reconstructions"),
        ("IS, samples", "IS\nsamples", "Inception score of samples"),
        ("FID-2048, reconstructions", "FID-2048\nreconstr.", "FID-2048 of reconstructions"),
        ("SSIM", "SSIM", "SSIM"),
        ("PSNR (dB)", "PSNR\ndB", "PSNR"),
        ("FID-2048, samples", "FID-2048\nsamples", "FID-2048 of samples"),
    ]
    assert (SPEC["bce"].head, SPEC["bce"].in_words) == ("BCE (nats/image)", "cross-entropy")
    assert (SPEC["kl"].head, SPEC["kl"].in_words) == ("KL (nats/image)", "KL divergence")
    assert SPEC["psnr_sampled"].head == "PSNR, sampled latents (dB)"
    assert SPEC["is_real"].in_words == "Inception score of real images"


def test_a_baseline_is_the_same_metric_on_real_images() -> None:
    baselines = {spec.key for spec in SPECS if spec.section is Section.BASELINE}
    beside_train = {f"floor_train_{kind}" for kind in ("paper", "2048", "kid")}
    assert baselines == {spec.baseline for spec in SPECS if spec.baseline} | beside_train
    for spec in SPECS:
        if spec.baseline:
            baseline = SPEC[spec.baseline]
            assert (baseline.metric, baseline.better) == (spec.metric, spec.better)


def test_the_direction_of_each_score_is_told() -> None:
    higher = {spec.key for spec in SPECS if spec.better is Better.HIGHER}
    assert higher == {
        *("auc", "auc_sampled", "auc_real"),
        *("sensitivity", "sensitivity_real", "specificity", "specificity_real"),
        *("ssim", "psnr", "ssim_sampled", "psnr_sampled"),
    }
