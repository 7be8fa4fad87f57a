"""Procedural chest radiographs: `phantom:N` gives data to everyone who has none at hand.

Each film is a sum of smooth layers (torso, lungs, ribs, spine, heart, diaphragm, opacities) in coordinates
x, y in [-1, 1], y downwards, the patient's left on the right as on a real film. Anatomy follows from the
patient, pose and noise from the film, so films of one patient look alike. The numbers were chosen by eye
beside real films: phantoms are for software, not for medicine.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.floating[Any]]  # float32 throughout, for speed

# Shares of the paediatric set this stands in for: 624 of 5,840 films are for testing, and more of the
# others than of these show pneumonia.
TEST_SHARE = 624 / 5840
PNEUMONIA_SHARE = {"train": 0.743, "test": 0.625}
MAX_FILMS_PER_PATIENT = 5
# A film's number is FILMS * patient + film, so that it alone says whose film it is.
FILMS = 10

# The side marker every film carries, 5 x 7 dots.
MARKER = ("XXXX.", "X...X", "X...X", "XXXX.", "X.X..", "X..X.", "X...X")


def items(count: int) -> list[tuple[str, str, str, str]]:
    """Key, class, split and patient of `count` films, with the real set's shares; keys end in the number."""
    num_test = round(count * TEST_SHARE)
    films: list[tuple[str, str, str, str]] = []
    patient = 0
    for split, size in (("train", count - num_test), ("test", num_test)):
        num_pneumonia = round(size * PNEUMONIA_SHARE[split])
        for label, wanted in (("NORMAL", size - num_pneumonia), ("PNEUMONIA", num_pneumonia)):
            end = len(films) + wanted
            while len(films) < end:
                # most patients have one film, few have many
                share = np.random.default_rng((1, patient)).random() ** 4
                num_films = 1 + int(share * MAX_FILMS_PER_PATIENT)
                for film in range(min(num_films, end - len(films))):
                    key = f"{split}/{label}/{FILMS * patient + film:07d}"
                    films.append((key, label, split, f"phantom-{patient}"))
                patient += 1
    return films


def render(number: int, has_pneumonia: bool, size_px: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Film `number` as uint8 [size_px, size_px], 0 = black (air), 255 = white (bone); always the same."""
    body = np.random.default_rng((2, seed, number // FILMS))
    take = np.random.default_rng((3, seed, number))
    x, y = _coordinates(size_px, take)
    x = x * np.float32(body.uniform(0.90, 1.12))  # slim to stout
    lungs, dome = _lungs(x, y, body)
    chest = 0.48 - 0.36 * lungs + _ribs(x, y, body) + _spine(x, y) + _heart(x, y, body)
    chest += 0.15 * _step(y - dome, 0.03) * _step(1 - _ellipse(x, y, (0, 0.6), (0.78, 0.6)), 0.3)
    chest += _clavicles(x, y, body) - 0.14 * _stomach(x, y, dome, body)
    if has_pneumonia:
        chest += 0.44 * lungs * _opacity(x, y, body, take)
    torso = _torso(x, y)
    film = 0.03 + torso * chest + 0.012 * torso * _smooth_noise(take, size_px, 24)
    film += take.normal(0, 0.012, film.shape).astype(np.float32)
    film = np.maximum(film, 0) ** take.uniform(0.9, 1.1)  # no two films are exposed alike
    _mark(film, take)
    return np.rint(np.clip(film, 0, 1) * 255).astype(np.uint8)


def _coordinates(size_px: int, take: np.random.Generator) -> tuple[Array, Array]:
    """x and y of every pixel, moved, turned and scaled a little: the pose."""
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
    angle, scale = take.normal(0, 0.03), take.uniform(0.95, 1.08)
    shift_x, shift_y = take.normal(0, 0.04, 2)
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    x = axis[None, :] * cos - axis[:, None] * sin + np.float32(shift_x)
    y = axis[None, :] * sin + axis[:, None] * cos + np.float32(shift_y)
    return x, y


def _step(value: Array, softness: float) -> Array:
    """0 where `value` is far below 0, 1 where it is far above."""
    scaled: Array = value * np.float32(1 / softness)
    return 0.5 + 0.5 * scaled / np.sqrt(1 + scaled * scaled)


def _ellipse(x: Array, y: Array, centre: tuple[float, float], radius: tuple[float, float]) -> Array:
    """Squared distance from `centre` in units of `radius`: below 1 inside an ellipse."""
    across: Array = (x - np.float32(centre[0])) / np.float32(radius[0])
    down: Array = (y - np.float32(centre[1])) / np.float32(radius[1])
    return across**2 + down**2


def _torso(x: Array, y: Array) -> Array:
    """Where the body is: trunk, shoulders and neck."""
    half_width = 0.86 - 0.10 * y * y
    trunk = _step(half_width - np.abs(x), 0.025) * _step(y + 1.02 - 0.35 * np.abs(x), 0.03)
    neck = _step(0.30 - np.abs(x), 0.05)
    along = np.abs(x) - 0.80 - 0.22 * (y + 0.72)  # arms hang from the shoulders, off the film
    arms = _step(0.16 - np.abs(along), 0.04) * _step(y + 0.80, 0.06) * _step(0.6 - y, 0.5)
    return np.maximum(np.maximum(trunk, neck * _step(-0.5 - y, 0.1)), 0.7 * arms)


def _lungs(x: Array, y: Array, body: np.random.Generator) -> tuple[Array, Array]:
    """Depth of air in [0, 1], and the height of the diaphragm's domes."""
    width, base = body.uniform(0.60, 0.68), body.uniform(0.40, 0.50)
    side = np.abs(x)
    dome = base + 1.3 * (side - 0.36) ** 2 + np.float32(0.05) * (x > 0)
    outline = 1 - _ellipse(side, y, (0.05, 0.25), (width, 1.02))
    # the apex is narrower than an ellipse, the mediastinum widens downwards
    outline = np.minimum(outline, 2.2 * (side - 0.13 - 0.05 * _step(y, 0.3)))
    depth = _step(outline, 0.06) * np.clip(0.45 + 0.8 * outline, 0, 1)
    return depth * _step(dome - y, 0.02), dome


def _ribs(x: Array, y: Array, body: np.random.Generator) -> Array:
    """Posterior ribs arching out and down, and fainter anterior ribs crossing them."""
    side = np.abs(x)
    spacing, start = body.uniform(0.145, 0.165), body.uniform(0, 1)
    across = np.clip(side / 0.68, 0, 1.1)
    back = (y - 0.05 * across - 0.36 * across**3) / spacing + start
    front = (y + 0.55 * across + 0.10 * across**2) / spacing * 0.85 + start
    cage = _step(1 - _ellipse(side, y, (0, 0.20), (0.73, 1.06)), 0.06)
    rim = np.exp(-(((np.sqrt(_ellipse(side, y, (0, 0.20), (0.70, 1.04))) - 1) / 0.045) ** 2))
    fade = _step(0.75 - y, 0.15)
    bones = 0.15 * _band(back) * _step(side - 0.10, 0.03)
    bones += 0.05 * _band(front) * _step(side - 0.30, 0.08)
    return cage * fade * (bones + 0.10 * rim * (0.4 + _band(back)))


def _band(phase: Array) -> Array:
    """One rib per unit of `phase`: a band with brighter rims, as cortical bone shows."""
    distance = np.abs(phase - np.rint(phase)) * 4.2  # 1 at the rib's edge
    rim = np.exp(-(((distance - 0.85) / 0.28) ** 2))
    return _step(1 - distance, 0.12) * 0.8 + 0.35 * rim


def _spine(x: Array, y: Array) -> Array:
    """Vertebrae: a column whose bodies are brighter than the discs between them."""
    column = _step(0.105 - np.abs(x), 0.015)
    bodies = 0.10 + 0.05 * np.cos(y * np.float32(2 * np.pi / 0.125))
    trachea = 0.10 * np.exp(-((x / 0.035) ** 2)) * _step(-0.25 - y, 0.1)
    return np.asarray(column * bodies - trachea)


def _heart(x: Array, y: Array, body: np.random.Generator) -> Array:
    """The heart, most of it on the patient's left, and the vessels above it."""
    size = body.uniform(0.9, 1.1)
    tilted = x + 0.25 * (y - 0.2)
    heart = _step(1 - _ellipse(tilted, y, (0.13, 0.22), (0.29 * size, 0.36 * size)), 0.16)
    arch = _step(1 - _ellipse(x, y, (0.06, -0.28), (0.15, 0.22)), 0.25)
    hila = np.exp(-_ellipse(np.abs(x), y, (0.22, -0.02), (0.10, 0.16)))
    return np.asarray(0.20 * np.maximum(heart, 0.75 * arch) + 0.08 * hila)


def _stomach(x: Array, y: Array, dome: Array, body: np.random.Generator) -> Array:
    """A bubble of air under the left dome, in most people."""
    centre = (body.uniform(0.32, 0.48), body.uniform(0.68, 0.80))
    bubble = _step(1 - _ellipse(x, y, centre, (0.17, 0.11)), 0.3)
    return np.asarray(bubble * _step(y - dome - 0.05, 0.02) * np.float32(body.random() < 0.7))


def _clavicles(x: Array, y: Array, body: np.random.Generator) -> Array:
    side = np.abs(x)
    height = body.uniform(-0.78, -0.70) - 0.20 * (side - 0.08) + 0.10 * np.sin(side * 5)
    bone = _band((y - height) / 0.20) * _step(0.10 - np.abs(y - height), 0.02)
    return 0.17 * bone * _step(side - 0.12, 0.03) * _step(0.82 - side, 0.05)


def _opacity(x: Array, y: Array, body: np.random.Generator, take: np.random.Generator) -> Array:
    """White clouds in [0, 1]: one lobe, as bacteria cause, or patches on both sides, as viruses do."""
    is_lobar = body.random() < 0.6
    cloud = np.zeros_like(x)
    for _ in range(1 if is_lobar else 8):
        side = 1 if body.random() < 0.5 else -1
        centre = (side * body.uniform(0.26, 0.5), body.uniform(-0.35, 0.35))
        low, high = (0.24, 0.36) if is_lobar else (0.10, 0.20)
        radius = (body.uniform(low, high), body.uniform(low, high))
        strength = body.uniform(0.8, 1.0) if is_lobar else body.uniform(0.45, 0.75)
        cloud = np.maximum(cloud, strength * np.exp(-(_ellipse(x, y, centre, radius) ** 1.5)))
    return np.clip(cloud * (1 + 0.25 * _smooth_noise(take, len(x), 12)), 0, 1)


def _smooth_noise(take: np.random.Generator, size_px: int, cells: int) -> Array:
    """Noise of unit strength that changes over 1/cells of the film."""
    coarse = Image.fromarray(take.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC), np.float32)


def _mark(picture: Array, take: np.random.Generator) -> None:
    """Put the side marker beside the patient's right shoulder."""
    dot = max(1, len(picture) // 100)
    letter = np.kron(np.array([[c == "X" for c in row] for row in MARKER]), np.ones((dot, dot)))
    top, left = int(len(picture) * take.uniform(0.05, 0.3)), dot
    spot = picture[top : top + letter.shape[0], left : left + letter.shape[1]]
    spot[letter > 0] = 0.92
