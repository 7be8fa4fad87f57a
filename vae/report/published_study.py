"""The published study beside ours: its figures, how to read them, and where we differ from it."""

from vae.report.page import Block, Details, Table, Text

# FID and IS as the published study gives them, for its two iterations.
PUBLISHED = {
    "published, first iteration (linear)": {"rfid_paper": "0.447", "is_reconstructions": "2.479"},
    "published, second iteration (direct)": {"rfid_paper": "0.133", "is_reconstructions": "3.014"},
}
# Under the table of FID and IS, a paragraph each.
HOW_TO_READ = (
    "FID-1000 is pytorch-ignite's FID as the published study used it: on 1000 class probabilities, at most "
    "about 2, and not on the scale of what others call FID (here FID-2048). Lower is better; 0 is a perfect "
    "copy. For reconstructions it measures what is lost on the way through the latents, so more latents win, "
    "and direct has no bottleneck at all. For samples, the row of real images is what as many training "
    "images score: what a perfect sampler could reach.",
    "The Inception score counts ImageNet classes, which X-rays do not show. Only its distance to the score "
    "of the real images says anything.",
    "The rows of the published study can be compared with care. It does not say whether it scored "
    "reconstructions or samples, from mean or sampled latents, which images, or how many. Its second "
    "iteration cannot sample, so its figures stand under reconstructions. They come from one training of "
    "each model.",
)
HOW_TO_READ_ALONE = (
    *HOW_TO_READ[:2],
    "The label says why these scores cannot be compared with those of others. So the figures of the "
    "published study are not shown beside them.",
)
HOW_TO_READ_SMOKE = (
    "These scores come from a tiny network with seeded random weights. They show that the scoring works, and "
    "nothing about the models: compare them with no other number.",
)
DIFFERENCES = (
    ("colours", "not said; its code takes any number of channels", "one grey channel"),
    ("image size", "256 x 256, resized in a way not said", "256 x 256, bicubic, stretched, at packing"),
    ("training images", "all 5,216 of the set's train folder", "without the patients cut for validation"),
    ("last, smaller batch of an epoch", "kept: 163 steps an epoch", "left out, so fewer steps"),
    ("precision", "not said", "fp32, or bf16 where the machine is fast in it; see the settings"),
    ("log-variance", "not bounded", "kept between -30 and 20, which training does not reach"),
    (
        "last layer",
        "sigmoid, then cross-entropy",
        "cross-entropy from logits: the same, but for logs below -100",
    ),
    (
        "loss",
        "cross-entropy and 1e-4 KL, sums over a batch",
        "the same divided by the images; Adam does not see it",
    ),
    (
        "loss curve",
        "of the last batch of each epoch",
        "mean over all images of an epoch; validation from mean latents",
    ),
    ("scored images", "not said", "every test image once"),
    (
        "latents of the scored images",
        "not said; its code draws them",
        "their mean; drawn ones as well, unless fast",
    ),
    ("second iteration", "described in words only", "encoder's map straight into the decoder"),
    ("seeds", "one training of each", "as many as there are runs"),
)


def differences_table() -> Block:
    """Where the toolkit differs from the published study, or fills in what that does not say."""
    head = ["", "published study", "here"]
    note = Text("A setting that was changed for a run stands under Settings.")
    return Details(
        "Where we differ from the published study, or fill its gaps", [Table(head, DIFFERENCES), note]
    )
