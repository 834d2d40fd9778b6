"""Add the project's URLs to the package's metadata: those of the forge that builds it.

They are in what the release workflow builds. What is built elsewhere has none, unless GITHUB_REPOSITORY says so.
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ProjectUrls(MetadataHookInterface):
    """Read the address of the repository from the variables that GitHub's runners set."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the URLs to the metadata."""
        metadata["urls"] = {}
        owner, _, name = os.environ.get("GITHUB_REPOSITORY", "").partition("/")
        if name:
            source = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{owner}/{name}"
            pages = f"https://{owner.lower()}.github.io/{name}"
            metadata["urls"] = {
                "Homepage": pages,
                "Documentation": pages,
                "Source": source,
                "Issues": f"{source}/issues",
                "Changelog": f"{pages}/changelog.html",
            }
