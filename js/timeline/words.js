/**
 * What stands on the view itself, in the languages of the pack; field names are those of the plan and stay as they are.
 *
 * @typedef {object} Words
 * @property {string} timeline
 * @property {string} segment
 * @property {string} last
 * @property {string} add
 * @property {string} remove
 * @property {string} prompt
 * @property {string} goesOn
 * @property {string} chain
 * @property {string} elsewhere
 * @property {string} free
 * @property {string} start
 * @property {string} ruler
 * @property {string} wired
 * @property {string} guessed {n} stands for a number
 * @property {string} moved {moved} stands for "picture1 → picture0"
 */

/** @type {Record<string, Words>} */
const LANGUAGES = {
  en: {
    timeline: "Timeline", segment: "segment", last: "last segment", add: "Add a reference (N)",
    remove: "Remove the chosen reference (Delete)", prompt: "The prompt.", goesOn: "The words before go on.",
    chain: "From the connected chain of references.", elsewhere: "Belongs to another segment:", free: "made freely",
    start: "Connect pictures and press + to place one.", ruler: "latent frame · frame · second",
    wired: "The plan comes by wire; change it where it is written.",
    guessed: "How long the clip is shows after a run; until then {n} latent frames are drawn.",
    moved: "The page has closed a gap: {moved}. The plan's numbers mean the pictures at these sockets now.",
  },
  zh: {
    timeline: "时间线", segment: "片段", last: "最后一个片段", add: "添加参考 (N)", remove: "移除所选参考 (Delete)",
    prompt: "提示词。", goesOn: "沿用前面的提示词。", chain: "来自已连接的参考链。", elsewhere: "属于另一个片段：",
    free: "自由生成", start: "连接图像，按 + 放置一个。", ruler: "潜空间帧 · 帧 · 秒",
    wired: "计划由连线传入；请在写它的地方修改。",
    guessed: "片段有多长在运行后才知道；在此之前按 {n} 个潜空间帧绘制。",
    moved: "页面补上了空位：{moved}。计划里的编号现在指这些接口上的图像。",
  },
  "zh-TW": {
    timeline: "時間軸", segment: "片段", last: "最後一個片段", add: "新增參考 (N)", remove: "移除所選參考 (Delete)",
    prompt: "提示詞。", goesOn: "沿用前面的提示詞。", chain: "來自已連接的參考鏈。", elsewhere: "屬於另一個片段：",
    free: "自由生成", start: "連接圖片，按 + 放置一個。", ruler: "潛空間影格 · 影格 · 秒",
    wired: "計畫由連線傳入；請在寫它的地方修改。",
    guessed: "片段有多長在執行後才知道；在此之前按 {n} 個潛空間影格繪製。",
    moved: "頁面補上了空位：{moved}。計畫裡的編號現在指這些接口上的圖片。",
  },
  ja: {
    timeline: "タイムライン", segment: "セグメント", last: "最後のセグメント", add: "参照を追加 (N)",
    remove: "選んだ参照を削除 (Delete)", prompt: "プロンプト。", goesOn: "前の言葉が続きます。",
    chain: "接続された参照の列から。", elsewhere: "別のセグメントに属します：", free: "自由に生成",
    start: "画像を接続し、+ で配置します。", ruler: "潜在フレーム · フレーム · 秒",
    wired: "プランは接続から来ます。書かれている場所で変更してください。",
    guessed: "クリップの長さは実行後にわかります。それまでは {n} 潜在フレームとして描きます。",
    moved: "ページが空きを詰めました：{moved}。プランの番号は今、これらのソケットの画像を指します。",
  },
  ko: {
    timeline: "타임라인", segment: "세그먼트", last: "마지막 세그먼트", add: "참조 추가 (N)",
    remove: "선택한 참조 제거 (Delete)", prompt: "프롬프트.", goesOn: "앞의 말이 이어집니다.",
    chain: "연결된 참조 체인에서 왔습니다.", elsewhere: "다른 세그먼트에 속합니다:", free: "자유롭게 생성",
    start: "이미지를 연결하고 +로 배치하세요.", ruler: "잠재 프레임 · 프레임 · 초",
    wired: "계획이 연결에서 옵니다. 적힌 곳에서 바꾸세요.",
    guessed: "클립의 길이는 실행 후에 알 수 있습니다. 그때까지 잠재 프레임 {n}개로 그립니다.",
    moved: "페이지가 빈자리를 채웠습니다: {moved}. 계획의 번호는 이제 이 소켓들의 이미지를 가리킵니다.",
  },
  fr: {
    timeline: "Ligne de temps", segment: "segment", last: "dernier segment", add: "Ajouter une référence (N)",
    remove: "Retirer la référence choisie (Suppr)", prompt: "Le prompt.", goesOn: "Les mots d'avant continuent.",
    chain: "De la chaîne de références connectée.", elsewhere: "Appartient à un autre segment :", free: "libre",
    start: "Connectez des images et appuyez sur + pour en placer une.", ruler: "image latente · image · seconde",
    wired: "Le plan arrive par un lien ; modifiez-le là où il est écrit.",
    guessed: "La longueur du clip se connaît après une exécution ; d’ici là, {n} images latentes sont dessinées.",
    moved: "La page a comblé un vide : {moved}. Les numéros du plan désignent maintenant les images de ces entrées.",
  },
  de: {
    timeline: "Zeitleiste", segment: "Abschnitt", last: "letzter Abschnitt", add: "Referenz hinzufügen (N)",
    remove: "Gewählte Referenz entfernen (Entf)", prompt: "Der Prompt.", goesOn: "Die Worte davor gelten weiter.",
    chain: "Aus der verbundenen Kette von Referenzen.", elsewhere: "Gehört zu einem anderen Abschnitt:", free: "frei",
    start: "Bilder verbinden und mit + eines setzen.", ruler: "latentes Bild · Bild · Sekunde",
    wired: "Der Plan kommt über eine Verbindung; dort ändern, wo er steht.",
    guessed: "Wie lang der Clip ist, zeigt erst ein Lauf; bis dahin werden {n} latente Bilder gezeichnet.",
    moved: "Die Seite hat eine Lücke geschlossen: {moved}. Die Nummern des Plans meinen jetzt die Bilder dort.",
  },
  es: {
    timeline: "Línea de tiempo", segment: "segmento", last: "último segmento", add: "Añadir una referencia (N)",
    remove: "Quitar la referencia elegida (Supr)", prompt: "El prompt.", goesOn: "Siguen las palabras anteriores.",
    chain: "De la cadena de referencias conectada.", elsewhere: "Pertenece a otro segmento:", free: "libre",
    start: "Conecta imágenes y pulsa + para colocar una.", ruler: "fotograma latente · fotograma · segundo",
    wired: "El plan llega por un enlace; cámbielo donde está escrito.",
    guessed: "La duración del clip se sabe tras una ejecución; hasta entonces se dibujan {n} fotogramas latentes.",
    moved: "La página ha cerrado un hueco: {moved}. Los números del plan designan ahora las imágenes de estas entradas.",
  },
  ru: {
    timeline: "Шкала времени", segment: "сегмент", last: "последний сегмент", add: "Добавить референс (N)",
    remove: "Удалить выбранный референс (Delete)", prompt: "Промпт.", goesOn: "Действуют прежние слова.",
    chain: "Из подключённой цепочки референсов.", elsewhere: "Относится к другому сегменту:", free: "свободно",
    start: "Подключите изображения и нажмите +, чтобы поставить одно.", ruler: "латентный кадр · кадр · секунда",
    wired: "План приходит по связи; меняйте его там, где он написан.",
    guessed: "Длина клипа видна после запуска; до этого рисуется латентных кадров: {n}.",
    moved: "Страница закрыла пробел: {moved}. Номера плана теперь относятся к изображениям в этих входах.",
  },
};

/**
 * @param {unknown} language as the page names it
 * @returns {Words} English where there are none
 */
export function wordsOf(language) {
  return LANGUAGES[String(language)] ?? LANGUAGES.en;
}

/** Languages there are words in. */
export const KNOWN = Object.keys(LANGUAGES);
