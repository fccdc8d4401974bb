// What the page says, in the languages that it knows.

/** @typedef {keyof typeof ENGLISH} Word */

const ENGLISH = {
  language: "Language",
  heading: "A file for you",
  headingFolder: "A folder for you",
  opening: "Opening the link …",
  passwordLabel: "Password",
  passwordAsk: "Whoever sent the link has set a password.",
  passwordOpen: "Open",
  passwordWrong: "That is not the password. Try again.",
  who: "Only who has the link can read this. The server that stores it cannot.",
  expires: "The link ends on {when}.",
  download: "Download",
  downloadName: "Download {name}",
  downloadAll: "Download all as one zip",
  show: "Show",
  showName: "Show {name}",
  hide: "Close",
  stop: "Stop",
  files: "{count} files, {size} in all",
  leftOut: "{count} entries of the folder are left out: links and the like.",
  name: "Name",
  size: "Size",
  more: "Show more",
  progress: "{done} of {size}",
  progressRate: "{done} of {size}, {rate} a second, {left} left",
  trouble: "The connection is broken. It goes on by itself when it is back.",
  saved: "{name} is complete, and every byte of it was verified.",
  stopped: "Stopped.",
  cut: "This is the beginning; the rest is in the download.",
  tooLargeToShow: "It is too large to be shown here. Download it.",
  memoryOnly:
    "This window cannot write to the disk while it downloads: files up to {size} only. An ordinary (not private) window can do more.",
  noLink: "There is no link in the address. Open the link again, all of it.",
  wait: "Downloads end when this page is closed.",
  failed: "It did not work",
  again: "Try again",
  incomplete: "The link is not whole. Copy all of it, to its last character.",
  newer: "The link needs a newer page than this one. Ask whoever sent it, or reload.",
  revoked: "There is nothing at this link any more: it was revoked.",
  expired: "The link has expired, or was revoked. Ask whoever sent it for a new one.",
  damaged: "The store answered with something else than what was shared. Nothing was saved.",
  password: "The link needs its password.",
  offline: "The store cannot be reached. Check the connection, and try again.",
  busy: "The store has too much to do. Try again in a while.",
  blocked: "This browser is too old, or forbids what the page needs.",
  tooLarge: "The file is too large for this window. Use an ordinary (not private) window.",
  refused: "The link leads to a place that this page does not ask.",
};

/** @type {Record<Word, string>} */
const GERMAN = {
  language: "Sprache",
  heading: "Eine Datei für Sie",
  headingFolder: "Ein Ordner für Sie",
  opening: "Der Link wird geöffnet …",
  passwordLabel: "Passwort",
  passwordAsk: "Wer den Link geschickt hat, hat ein Passwort gesetzt.",
  passwordOpen: "Öffnen",
  passwordWrong: "Das ist nicht das Passwort. Versuchen Sie es noch einmal.",
  who: "Nur wer den Link hat, kann das lesen. Der Server, der es aufbewahrt, kann es nicht.",
  expires: "Der Link endet am {when}.",
  download: "Herunterladen",
  downloadName: "{name} herunterladen",
  downloadAll: "Alles als eine Zip-Datei herunterladen",
  show: "Ansehen",
  showName: "{name} ansehen",
  hide: "Schließen",
  stop: "Anhalten",
  files: "{count} Dateien, zusammen {size}",
  leftOut: "{count} Einträge des Ordners sind nicht dabei: Verknüpfungen und Ähnliches.",
  name: "Name",
  size: "Größe",
  more: "Mehr zeigen",
  progress: "{done} von {size}",
  progressRate: "{done} von {size}, {rate} je Sekunde, noch {left}",
  trouble: "Die Verbindung ist unterbrochen. Es geht von selbst weiter, sobald sie wieder da ist.",
  saved: "{name} ist vollständig, und jedes Byte wurde geprüft.",
  stopped: "Angehalten.",
  cut: "Das ist der Anfang; der Rest ist in der Datei.",
  tooLargeToShow: "Zu groß, um hier gezeigt zu werden. Laden Sie die Datei herunter.",
  memoryOnly:
    "Dieses Fenster kann beim Herunterladen nicht auf die Platte schreiben: nur Dateien bis {size}. Ein gewöhnliches (kein privates) Fenster kann mehr.",
  noLink: "In der Adresse steht kein Link. Öffnen Sie den ganzen Link noch einmal.",
  wait: "Schließen Sie die Seite erst, wenn alles heruntergeladen ist.",
  failed: "Das hat nicht geklappt",
  again: "Noch einmal versuchen",
  incomplete: "Der Link ist nicht vollständig. Kopieren Sie ihn bis zum letzten Zeichen.",
  newer: "Der Link braucht eine neuere Seite als diese. Laden Sie sie neu, oder fragen Sie den Absender.",
  revoked: "Unter diesem Link ist nichts mehr: er wurde zurückgezogen.",
  expired: "Der Link ist abgelaufen oder wurde zurückgezogen. Bitten Sie den Absender um einen neuen.",
  damaged: "Der Speicher hat etwas anderes geliefert als das, was geteilt wurde. Nichts wurde gespeichert.",
  password: "Der Link braucht sein Passwort.",
  offline: "Der Speicher ist nicht zu erreichen. Prüfen Sie die Verbindung.",
  busy: "Der Speicher ist überlastet. Versuchen Sie es später noch einmal.",
  blocked: "Dieser Browser ist zu alt oder verbietet, was die Seite braucht.",
  tooLarge: "Die Datei ist zu groß für dieses Fenster. Nehmen Sie ein gewöhnliches (kein privates) Fenster.",
  refused: "Der Link führt an einen Ort, den diese Seite nicht fragt.",
};

/** @type {Record<Word, string>} */
const FRENCH = {
  language: "Langue",
  heading: "Un fichier pour vous",
  headingFolder: "Un dossier pour vous",
  opening: "Ouverture du lien …",
  passwordLabel: "Mot de passe",
  passwordAsk: "La personne qui a envoyé le lien a choisi un mot de passe.",
  passwordOpen: "Ouvrir",
  passwordWrong: "Ce n'est pas le bon mot de passe. Réessayez.",
  who: "Seules les personnes qui ont le lien peuvent le lire. Le serveur qui le garde ne le peut pas.",
  expires: "Le lien expire le {when}.",
  download: "Télécharger",
  downloadName: "Télécharger {name}",
  downloadAll: "Tout télécharger en un seul zip",
  show: "Voir",
  showName: "Voir {name}",
  hide: "Fermer",
  stop: "Arrêter",
  files: "{count} fichiers, {size} au total",
  leftOut: "{count} entrées du dossier manquent : liens et autres.",
  name: "Nom",
  size: "Taille",
  more: "Voir la suite",
  progress: "{done} sur {size}",
  progressRate: "{done} sur {size}, {rate} par seconde, reste {left}",
  trouble: "La connexion est coupée. Le téléchargement reprendra de lui-même.",
  saved: "{name} est complet, et chaque octet a été vérifié.",
  stopped: "Arrêté.",
  cut: "C'est le début ; la suite est dans le fichier à télécharger.",
  tooLargeToShow: "Trop grand pour être affiché ici. Téléchargez le fichier.",
  memoryOnly:
    "Cette fenêtre ne peut pas écrire sur le disque pendant le téléchargement : fichiers jusqu'à {size} seulement. Une fenêtre ordinaire (non privée) peut davantage.",
  noLink: "L'adresse ne contient pas de lien. Ouvrez de nouveau le lien entier.",
  wait: "Les téléchargements s'arrêtent quand on ferme cette page.",
  failed: "Cela n'a pas marché",
  again: "Réessayer",
  incomplete: "Le lien n'est pas complet. Copiez-le jusqu'au dernier caractère.",
  newer: "Le lien demande une page plus récente. Rechargez-la, ou demandez à l'expéditeur.",
  revoked: "Il n'y a plus rien à ce lien : il a été révoqué.",
  expired: "Le lien a expiré ou a été révoqué. Demandez-en un nouveau à l'expéditeur.",
  damaged: "Le serveur a répondu autre chose que ce qui était partagé. Rien n'a été enregistré.",
  password: "Le lien demande son mot de passe.",
  offline: "Le serveur est injoignable. Vérifiez la connexion.",
  busy: "Le serveur est surchargé. Réessayez plus tard.",
  blocked: "Ce navigateur est trop ancien, ou interdit ce dont la page a besoin.",
  tooLarge: "Le fichier est trop grand pour cette fenêtre. Prenez une fenêtre ordinaire (non privée).",
  refused: "Le lien mène à un endroit que cette page n'interroge pas.",
};

/** @type {Record<string, Record<Word, string>>} */
export const LANGUAGES = { en: ENGLISH, de: GERMAN, fr: FRENCH };

/**
 * The first language that the reader wants and the page knows.
 * @param {readonly string[]} wanted
 */
export function chooseLanguage(wanted) {
  for (const tag of wanted) {
    const language = tag.slice(0, 2).toLowerCase();
    if (language in LANGUAGES) return language;
  }
  return "en";
}

/**
 * @param {string} language
 * @param {Word} word
 * @param {Record<string, string>} [values]
 */
export function say(language, word, values = {}) {
  return LANGUAGES[language][word].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/**
 * A size as people say it, of powers of 1000.
 * @param {string} language
 * @param {number} bytes
 */
export function sizeOf(language, bytes) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  let n = 0;
  let value = bytes;
  while (value >= 999.5 && n < units.length - 1) {
    value /= 1000;
    n++;
  }
  const digits = n && value < 99.5 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 };
  return new Intl.NumberFormat(language, { style: "unit", unit: units[n], ...digits }).format(value);
}

/**
 * A length of time, roughly.
 * @param {string} language
 * @param {number} seconds
 */
export function timeOf(language, seconds) {
  const [value, unit] =
    seconds < 90 ? [seconds, "second"] : seconds < 5400 ? [seconds / 60, "minute"] : [seconds / 3600, "hour"];
  const style = { style: /** @type {"unit"} */ ("unit"), unit, maximumFractionDigits: 0 };
  return new Intl.NumberFormat(language, { ...style, unitDisplay: "long" }).format(Math.max(1, value));
}
