"""A browser without a screen: keeps cookies, sends the origin of requests, follows no redirect."""

import re
from html import unescape
from urllib.parse import urljoin, urlsplit

import httpx

from tests.fakes.app_client import AppClient
from tests.fakes.control_plane import ControlPlane

ORIGIN = "http://localhost"
DOCUMENT = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}


class Browser(AppClient):
    """Requests of a person's browser to the page of a control plane."""

    def __init__(self, plane: ControlPlane, origin: str = ORIGIN) -> None:
        super().__init__(plane.app)
        self.origin = origin
        self.cookies: dict[str, str] = {}

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Any method; `path` is below the origin."""
        given = options.pop("headers", {})
        assert isinstance(given, dict)
        own = {**DOCUMENT, **({"Origin": self.origin} if method != "GET" else {})}
        if self.cookies:
            own["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {name: value for name, value in {**own, **given}.items() if value is not None}
        response = super().request(method, urljoin(self.origin, path), headers=headers, **options)
        self._keep(response)
        return response

    def sign_in(self, key: str, **form: str) -> httpx.Response:
        """Post the form of the sign-in page."""
        return self.post("/ui/login", data={"key": key, **form})

    def follow(self, response: httpx.Response) -> httpx.Response:
        """Open the address of a redirect, which is relative."""
        assert response.status_code in (303, 307), response.text
        return self.get(self.target(response))

    def target(self, response: httpx.Response) -> str:
        """The path and query of a redirect, after checking that it stays here."""
        address = urlsplit(urljoin(str(response.request.url), response.headers["location"]))
        assert f"{address.scheme}://{address.netloc}" == self.origin, response.headers["location"]
        return f"{address.path}?{address.query}" if address.query else address.path

    def _keep(self, response: httpx.Response) -> None:
        for line in response.headers.get_list("set-cookie"):
            name, _, rest = line.partition("=")
            value = rest.partition(";")[0].strip('"')
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value


def text_of(page: str) -> str:
    """The text of the content of a page or of a part of one, without markup, in one line."""
    content = page.partition("<main")[2].partition("</main>")[0] or page
    without = re.sub(r"<svg.*?</svg>", " ", content, flags=re.DOTALL)
    # Elements that follow each other are apart on the screen.
    apart = re.sub(r">(?=<[a-z])|<br>|</(p|li|dt|dd|div|h\d)>", _with_space, without)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", apart)).split())


def _with_space(found: re.Match[str]) -> str:
    return "> " if found[0] == ">" else " "


def rows_of(page: str, section: str) -> list[list[str]]:
    """Texts of the cells of the tables within the element of that id."""
    found = re.search(rf'<(\w+)[^>]* id="{section}"', page)
    assert found, f"there is no {section}"
    part = page[found.start() :].partition(f"</{found[1]}>")[0]
    bodies = re.findall(r"<tbody[^>]*>(.*?)</tbody>", part, re.DOTALL)
    return [
        [text_of(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for body in bodies
        for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]
