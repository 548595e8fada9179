"""Which Debian packages hold the data, and which of them training never sees."""

from __future__ import annotations

FASHION_MNIST = "dataset-fashion-mnist"

# Programs with complete German catalogues of plain sentences, each with little else to download.
TRAINING = (
    "anjuta-common",
    "aptitude-common",
    "ardour-data",
    "audacity-data",
    "blender-data",
    "claws-mail-i18n",
    "darktable",
    "digikam-data",
    "evolution-common",
    "evolution-data-server-common",
    "gimp-data",
    "git",
    "gnome-control-center-data",
    "gnucash-common",
    "gnumeric-common",
    "gramps",
    "inkscape",
    "kate5-data",
    "kmymoney-common",
    "krita-l10n",
    "libgtk-3-common",
    "libgtk-4-common",
    "libreoffice-l10n-de",
    "phpmyadmin",
    "vlc-l10n",
    "wordpress-l10n",
)
VALIDATION = ("geany-common", "rhythmbox-data")
TEST = ("hexchat-common", "nautilus-data", "pidgin-data")

SPLITS = {"training": TRAINING, "validation": VALIDATION, "test": TEST}
