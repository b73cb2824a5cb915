"""Renders letters of 157 scripts into small images, 20 a class, and caches them.

The fonts are Debian's `fonts-noto-core` (SIL Open Font Licence 1.1); neither they nor the images
are part of this repository. A class is a letter of a script; its images are drawn from the faces
that have it, each under a random rotation, shear, scaling and shift.

Run: ./run --with pillow --with fonttools python experiments/glyphs/render.py [--fonts DIR]
"""

import argparse
import unicodedata
from pathlib import Path

import numpy as np
from tqdm import tqdm

FONTS = Path("/usr/share/fonts/truetype/noto")
CACHE = Path("out/glyphs/glyphs.npz")
CLASSES_A_SCRIPT, IMAGES_A_CLASS, SIZE, CANVAS = 30, 20, 28, 128
FEWEST_LETTERS = 15
SYMBOLS = {"Mono", "Symbols", "Symbols2", "Math", "Display", "Music", "EmojiX", "Emoji"}


def faces(folder):
    """Returns the files of each script; Sans, Serif and other families of a script are merged."""
    scripts = {}
    for file in sorted(folder.glob("Noto*-*.ttf")):
        family, style = file.stem.rsplit("-", 1)
        for part in ("NotoSans", "NotoSerif", "NotoNaskh", "NotoRashi", "UI"):
            family = family.replace(part, "")
        if style in ("Regular", "Bold") and family not in SYMBOLS:
            scripts.setdefault(family or "LGC", []).append(file)
    return scripts


def letters(script, maps):
    """Returns up to 30 code points of a script that some of its faces have."""

    def belongs(code):
        if script == "LGC":  # Greek and Cyrillic; Latin letters are in every font
            return 0x3B1 <= code <= 0x3C9 or 0x430 <= code <= 0x44F
        return code > 0x24F

    found = sorted(
        code
        for code in set.union(*maps)
        if unicodedata.category(chr(code)) in ("Lo", "Ll", "Lu") and belongs(code)
    )
    return np.random.default_rng(1).permutation(found)[:CLASSES_A_SCRIPT]


def draw(rng, font, letter):
    """Returns one image of a letter, 28 x 28 in 0 to 255."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (CANVAS, CANVAS), 0)
    left, top, right, bottom = font.getbbox(letter)
    middle = CANVAS / 2
    corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=font)
    angle, shear = rng.normal(0, 0.17), rng.normal(0, 0.15)
    scale_x, scale_y = np.exp(rng.normal(0, 0.15, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[scale_x, shear], [0, scale_y]])
    shift = middle - matrix @ (middle + rng.normal(0, 4, 2))
    affine = (*matrix[0], shift[0], *matrix[1], shift[1])
    image = image.transform((CANVAS, CANVAS), Image.Transform.AFFINE, affine, Image.BILINEAR)
    return np.asarray(image.resize((SIZE, SIZE), Image.BOX))


def render(folder):
    """Returns images (c, 20, 28, 28) and the script (c,) of every class."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    rng, images, scripts = np.random.default_rng(0), [], []
    for script, files in tqdm(faces(folder).items(), desc="scripts"):
        maps = [set(TTFont(file, lazy=True).getBestCmap()) for file in files]
        chosen = letters(script, maps)
        if len(chosen) < FEWEST_LETTERS:
            continue
        fonts = [ImageFont.truetype(file, CANVAS // 2) for file in files]
        for code in chosen:
            having = [i for i in range(len(files)) if code in maps[i]]
            of_class = np.stack(
                [
                    draw(rng, fonts[having[j % len(having)]], chr(int(code)))
                    for j in range(IMAGES_A_CLASS)
                ]
            )
            if of_class.sum() >= 20 * 255:  # some letters have an empty glyph
                images.append(of_class)
                scripts.append(script)
    return np.stack(images), np.array(scripts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fonts", type=Path, default=FONTS)
    parser.add_argument("--out", type=Path, default=CACHE)
    arguments = parser.parse_args()
    if not any(arguments.fonts.glob("Noto*-*.ttf")):
        raise SystemExit(
            f"--fonts: {arguments.fonts} holds no Noto fonts; install Debian's fonts-noto-core, or "
            "unpack it (dpkg-deb -x) and name the folder"
        )
    images, scripts = render(arguments.fonts)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, images=images, scripts=scripts)
    print(len(np.unique(scripts)), "scripts,", len(images), "classes")


if __name__ == "__main__":
    main()
